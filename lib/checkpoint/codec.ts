/** What a checkpoint is to its user: bytes, or any value that can be cloned. */
import { deserialize, serialize } from 'node:v8';
import { HoldfastError } from '../base/errors.ts';

/** Turns values into bytes and back. `decode` throws for bytes that are none of its own. */
export interface Codec<T> {
  /** The bytes that `decode` takes. */
  encode(value: T): Uint8Array;
  /** Throws for bytes that are none of its own. */
  decode(bytes: Uint8Array): T;
}

/** Bytes as they are; those that are read are views of memory that the reader does not use any more. */
export const bytesCodec: Codec<Uint8Array> = {
  encode: (value) => value,
  decode: (bytes) => bytes,
};

/**
 * Any value that the structured clone algorithm takes, in V8's own format: readable by this version of Node and later
 * ones.
 *
 * @throws HoldfastError ERR_HOLDFAST_BAD_ARGUMENT for a value that cannot be cloned (a function, say),
 *   ERR_HOLDFAST_BAD_FRAME for bytes that are no such value.
 */
export function structuredCodec<T>(): Codec<T> {
  return {
    encode(value) {
      try {
        return serialize(value);
      } catch (cause) {
        throw new HoldfastError(
          'ERR_HOLDFAST_BAD_ARGUMENT',
          `this value cannot be a checkpoint: ${reason(cause)}; give one that structuredClone takes`,
          { cause },
        );
      }
    },
    decode(bytes) {
      try {
        return deserialize(bytes) as T;
      } catch (cause) {
        throw new HoldfastError(
          'ERR_HOLDFAST_BAD_FRAME',
          `a checkpoint of ${bytes.length} bytes is no serialized value; was it written with another codec?`,
          { cause },
        );
      }
    },
  };
}

function reason(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}
