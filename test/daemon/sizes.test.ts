import { expect, it } from 'vitest';
import { isLocalAddress, parseAddress } from '../../lib/daemon/address.ts';
import { nearest } from '../../lib/daemon/nearest.ts';
import { formatSize, parseSize } from '../../lib/daemon/sizes.ts';

it.each([
  ['4k', 4096],
  ['4 KiB', 4096],
  ['1.5 GiB', 1.5 * 1024 ** 3],
  ['512', 512],
  ['512 B', 512],
  ['7PiB', 7 * 1024 ** 5],
  ['1.0001k', undefined],
  ['-1', undefined],
  ['', undefined],
  ['4 KiBs', undefined],
  ['9999999999999999', undefined],
])('the size %s is %s bytes', (text, bytes) => {
  expect(parseSize(text)).toBe(bytes);
});

it.each([
  [0, '0 B'],
  [1023, '1023 B'],
  [65536, '64 KiB'],
  [1.5 * 1024 ** 3, '1.50 GiB'],
  [123456789, '118 MiB'],
])('%d bytes are shown as %s', (bytes, text) => {
  expect(formatSize(bytes)).toBe(text);
});

it('addresses are what formatAddress writes', () => {
  expect(parseAddress('10.0.0.1:80')).toEqual({ kind: 'tcp', host: '10.0.0.1', port: 80 });
  expect(parseAddress('[fe80::1]:80')).toEqual({ kind: 'tcp', host: 'fe80::1', port: 80 });
  expect(parseAddress('unix:/a b')).toEqual({ kind: 'unix', path: '/a b' });
  for (const text of ['', 'host', 'fe80::1:80', 'host:0', 'host:65536', 'a b:80', ':80', '[]:80'])
    expect(typeof parseAddress(text)).toBe('string');
});

it('knows which addresses other machines can reach', () => {
  const local = (text: string) =>
    isLocalAddress(parseAddress(text) as Exclude<ReturnType<typeof parseAddress>, string>);
  expect(['unix:/x', '127.0.0.1:1', '127.9.9.9:1', '[::1]:1', 'localhost:1'].map(local)).not.toContain(false);
  expect(['0.0.0.0:1', '10.0.0.1:1', '[::]:1', '127.0.0.1.example.org:1'].map(local)).not.toContain(true);
});

it('finds the word that was meant, and none where nothing is near', () => {
  const words = ['device', 'metadata', 'node'];
  expect([nearest('devcie', words), nearest('metdata', words), nearest('NODE', words)]).toEqual(words);
  expect([nearest('x', words), nearest('colour', words), nearest('y'.repeat(10_000), words)]).toEqual([
    undefined,
    undefined,
    undefined,
  ]);
});
