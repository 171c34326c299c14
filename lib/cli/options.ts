/** Values on the command line: checked as they are read, so that a wrong one is a usage error that names its option. */
import { InvalidArgumentError } from 'commander';
import { parseSize } from '../daemon/sizes.ts';

/** A commander parser for a whole number of bytes between two limits. */
export function sizeOption(minBytes: number, maxBytes: number): (text: string) => number {
  return (text) => {
    const bytes = parseSize(text);
    if (bytes === undefined) throw new InvalidArgumentError('Write bytes, or a number with k, M, G.');
    if (bytes < minBytes || bytes > maxBytes)
      throw new InvalidArgumentError(`It must be from ${minBytes} to ${maxBytes} bytes.`);
    return bytes;
  };
}

export function numberOption(min: number, max: number, whole: boolean): (text: string) => number {
  return (text) => {
    const value = /^\d{1,9}(\.\d{1,6})?$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max) || (whole && !Number.isInteger(value)))
      throw new InvalidArgumentError(`It must be a ${whole ? 'whole ' : ''}number from ${min} to ${max}.`);
    return value;
  };
}
