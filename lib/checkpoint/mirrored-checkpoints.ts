/**
 * Checkpoints in a mirrored region, with backups that clear what they have applied. A mirrored region has one writer, and
 * a cursor is written by its backup: so each backup's cursor lies in a small mirrored region of its own. Primary and
 * backup see it where the layout (layout.ts) has it.
 */
import { HoldfastError } from '../base/errors.ts';
import { ComposedAccess, type ComposedPart } from './composed-access.ts';
import type {
  MirroredMemoryConnection,
  MirroredRegion,
  OpenReaderOptions,
  OpenWriterOptions,
} from './connect-mirrored-memory.ts';
import { CursorView } from './cursor-view.ts';
import { createCursorIfBlank } from './cursors.ts';
import { CURSORS_MAX, cursorAddress, PAIR_BYTES } from './layout.ts';
import { readRegionRecord } from './region-record.ts';

/** A region with checkpoints, and where its backups have their cursors. */
export interface MirroredCheckpoints {
  readonly region: MirroredRegion;
  /** By the number of the backup's cursor: a region for it alone, of 8 KiB or more. */
  readonly cursors: readonly MirroredRegion[];
}

/**
 * The region for the primary: for CheckpointWriter.open. Takes it over. Format it first, opened without its cursors.
 *
 * @throws HoldfastError as MirroredMemoryConnection.openWriter; ERR_HOLDFAST_BAD_ARGUMENT for more cursors than there may
 *   be, or than the region has room for.
 */
export async function openMirroredPrimary(
  memory: MirroredMemoryConnection,
  { region, cursors }: MirroredCheckpoints,
  options: OpenWriterOptions = {},
): Promise<ComposedAccess> {
  if (cursors.length > CURSORS_MAX) throw wrong(`a region has at most ${CURSORS_MAX} cursors, not ${cursors.length}`);
  const views = cursors.map((cursor) => viewOf(memory, cursor));
  const main = await memory.openWriter(region, options);
  try {
    return composed(
      main,
      views.map((view, index) => [index, view]),
    );
  } catch (error) {
    await main.close();
    throw error;
  }
}

/**
 * The region for the backup with this cursor: for CheckpointReader.open, with `cursor` and a name. Takes the cursor over.
 * Waits for a unit in sync that it alone cannot reach, if not told otherwise.
 *
 * @throws HoldfastError as MirroredMemoryConnection.openReader and openWriter; ERR_HOLDFAST_METADATA_MISSING if the
 *   region has not been formatted, ERR_HOLDFAST_BAD_ARGUMENT if it has no such cursor.
 */
export async function openMirroredBackup(
  memory: MirroredMemoryConnection,
  { region, cursors }: MirroredCheckpoints,
  cursor: number,
  options: OpenReaderOptions = {},
): Promise<ComposedAccess> {
  const own = cursors[cursor];
  if (own === undefined) throw wrong(`there is no region for cursor ${cursor}; there are ${cursors.length}, from 0 on`);
  const { signal, legMs } = options;
  const main = await memory.openReader(region, { whenLegAway: 'wait', ...options });
  const parts: ComposedPart[] = [main];
  try {
    const record = await readRegionRecord(main);
    if (cursor >= record.cursorCount)
      throw wrong(`there is no cursor ${cursor}; the region has ${record.cursorCount}, from 0 on`);
    const pages = await memory.openWriter(own, { ...(signal && { signal }), ...(legMs !== undefined && { legMs }) });
    parts.push(pages);
    const access = composed(main, [[cursor, pages]]);
    await createCursorIfBlank(access, record, cursor);
    return access;
  } catch (error) {
    await Promise.all(parts.map((part) => part.close()));
    throw error;
  }
}

function composed(main: ComposedPart, cursors: readonly (readonly [number, ComposedPart])[]): ComposedAccess {
  const short = cursors.find(([, { range }]) => range.lengthBytes < PAIR_BYTES)?.[1];
  if (short !== undefined)
    throw wrong(`the region for a cursor has ${short.range.lengthBytes} bytes; it takes ${PAIR_BYTES}`);
  const { base, lengthBytes } = main.range;
  const far = cursors.find(([index]) => cursorAddress(index) + PAIR_BYTES > base + lengthBytes);
  if (far !== undefined)
    throw wrong(`a region of ${lengthBytes} bytes has no room for cursor ${far[0]}; make it longer, or take fewer`);
  return new ComposedAccess(
    main,
    cursors.map(([index, access]) => ({ address: cursorAddress(index), lengthBytes: PAIR_BYTES, access })),
  );
}

function viewOf(memory: MirroredMemoryConnection, region: MirroredRegion): CursorView {
  return new CursorView({
    clock: memory.clock,
    name: region.name,
    lengthBytes: PAIR_BYTES,
    openReader: (signal) => memory.openReader(region, { whenLegAway: 'wait', signal }),
    isBlank: async (signal) => (await memory.register(region).compareAndSwap('', '', signal)).swapped,
  });
}

function wrong(message: string): HoldfastError {
  return new HoldfastError('ERR_HOLDFAST_BAD_ARGUMENT', message);
}
