/** CRC-32C as the devices' formats use it. It lives a floor down, since the peers' frames use it too. */
export { crc32c, crc32cBlocks, crc32cCombine, crc32cCopy, crc32cKernel } from '../base/checksum.ts';
