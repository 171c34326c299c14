/** Sizes as people write and read them: `64 KiB`, `4k`, `10 GiB`. Powers of 1024 only, as devices are made. */

const UNITS = ['', 'K', 'M', 'G', 'T', 'P'];

/** Bytes of `"4k"`, `"64 KiB"`, `"1.5 GiB"`, `"512"`, `"512 B"`; undefined if it is not a whole number of bytes. */
export function parseSize(text: string): number | undefined {
  const match = /^\s*(\d{1,16}(?:\.\d{1,6})?)\s*([KMGTP]?)(?:i?B)?\s*$/i.exec(text);
  if (!match) return undefined;
  const bytes = Number(match[1]) * 1024 ** UNITS.indexOf(match[2]!.toUpperCase());
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** `64 KiB`, `1.50 GiB`: three digits that count. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  if (unit === 0) return `${Math.round(value)} B`;
  const digits = Number.isInteger(value) || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${UNITS[unit]}iB`;
}
