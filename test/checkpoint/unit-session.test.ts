/** One-sided commands over sessions: what is said on the wire, and what is refused to whom. */
import { describe, expect, test } from 'vitest';
import { COMMAND_DATA_MAX_BYTES, encodeCommand } from '../../lib/checkpoint/command-format.ts';
import { openAccess } from '../../lib/checkpoint/memory-session.ts';
import { memoryCommandMethod } from '../../lib/checkpoint/memory-wire.ts';
import { command, key, PAGE, REGION, TABLE, UnitNetwork } from './unit-network.ts';

const file = (name: string) => new URL(`transcripts/${name}.txt`, import.meta.url).pathname;
const refusals = ({ unit }: UnitNetwork) =>
  unit
    .auditEvents()
    .flatMap(({ kind, peer, code, count }) => (kind === 'refused' ? [`${peer} ${code?.slice(13)} ${count}`] : []));

describe('as transcripts', () => {
  test('each command, and each with what it may add', async () => {
    const net = await new UnitNetwork().start();
    await net.grant('ann', 1);
    await net.told('ann', command('write', 1, { address: 4092, persist: true }), 'one two ');
    await net.told('ann', command('read', 1, { address: 4092 }));
    await net.told('ann', command('compareAndSwap', 1, { address: 64, operandA: 0n, operandB: 0x0102030405060708n }));
    await net.told('ann', command('compareAndSwap', 1, { address: 64, operandA: 0n, operandB: 5n, persist: true }));
    const guard = { guard: true, operandB: 64n };
    await net.told('ann', command('write', 1, { ...guard, operandA: 0x0102030405060708n, length: 5 }), 'valid');
    await net.told('ann', command('write', 1, { ...guard, operandA: 1n, length: 5 }), 'stale');
    await net.told('ann', command('persist', 1, { length: 3 * PAGE }));
    await net.told('ann', command('watch', 1, { length: 64, operandA: 1n }));
    await expect(net.transcript).toMatchFileSnapshot(file('unit-commands'));
  });

  test('what is refused, and what the log says of it', async () => {
    const net = await new UnitNetwork().start();
    await net.grant('ann', 1, { rights: ['read'], range: { base: PAGE, lengthBytes: PAGE } });
    await net.grant('ben', 2);
    await net.told('ann', command('read', 1, { address: PAGE }));
    net.lines.push('-- before and after the range, and around the end of all numbers');
    await net.told('ann', command('read', 1, { address: PAGE - 1 }));
    await net.told('ann', command('read', 1, { address: 2 * PAGE - 7 }));
    await net.told('ann', command('read', 1, { address: Number.MAX_SAFE_INTEGER - 8 }));
    net.lines.push('-- without the right');
    await net.told('ann', command('write', 1, { address: PAGE }), 'ANN ANN ');
    net.lines.push('-- an invented key; the key of another session; a key that was revoked: the same answer');
    await net.told('ann', command('read', 3, { address: PAGE }));
    await net.told('ann', command('read', 2, { address: PAGE }));
    await net.until(net.unit.revoke({ region: REGION, peer: 'ann' }));
    await net.told('ann', command('read', 1, { address: PAGE }));
    await net.told('ben', command('read', 2, { address: PAGE }));
    await expect(net.transcript).toMatchFileSnapshot(file('unit-refusals'));
  });
});

describe('access', () => {
  test('reads, writes, swaps and watches of two clients at one region, many at once', async () => {
    const net = await new UnitNetwork().start();
    const [ann, ben] = [await net.access('ann', 1), await net.access('ben', 2)];
    expect([ann.unit, ann.open, ann.range]).toEqual(['unit', true, { base: 0, lengthBytes: 4 * PAGE }]);
    const since = await net.until(ben.watch(0, 4 * PAGE, 0));
    const watch = ben.watch(3 * PAGE, 64, since);
    const writes = Array.from({ length: 48 }, (_, index) =>
      ann.write(index * 256, [Buffer.alloc(100, index), Buffer.alloc(156, index)], { persist: true }),
    );
    await net.until(Promise.all(writes));
    const target = new Uint8Array(PAGE);
    for (let page = 0; page < 3; page += 1) {
      await net.until(ben.read(page * PAGE, target));
      for (const [at, byte] of target.entries()) expect(byte).toBe(page * 16 + (at >> 8));
    }
    expect(await net.until(ann.compareAndSwap(3 * PAGE, 0n, 9n, { persist: true }))).toBe(0n);
    expect(await net.until(ben.compareAndSwap(3 * PAGE, 0n, 8n))).toBe(9n);
    expect(await net.until(watch)).toBe(since + 49);
  });

  test('commands of one session are executed in the order of the calls', async () => {
    const net = await new UnitNetwork().start();
    const ann = await net.access('ann', 1);
    const results: string[] = [];
    const steps: Promise<void>[] = [];
    for (let count = 0; count < 100; count += 1) {
      const target = Buffer.alloc(4);
      steps.push(ann.write(0, [Buffer.from(String(count).padStart(4))], { persist: count % 3 === 0 }));
      steps.push(ann.read(0, target).then(() => void results.push(target.toString().trim())));
    }
    await net.until(Promise.all(steps));
    expect(results).toEqual(Array.from({ length: 100 }, (_, count) => String(count)));
  });

  test('the unit dies: what has no answer fails, and what was acknowledged survives the power cut', async () => {
    const net = await new UnitNetwork().start();
    const ann = await net.access('ann', 1);
    const acknowledged: number[] = [];
    net.memory.crashAtStore(40, () => net.cluster.node('unit').kill());
    const writes: Promise<string | undefined>[] = [];
    for (let index = 0; index < 64; index += 1) {
      const write = ann.write(index * 64, [new Uint8Array(64).fill(index + 1)], { persist: true });
      writes.push(
        write.then(
          () => void acknowledged.push(index),
          (error) => error.code,
        ),
      );
      if (ann.open) await net.pass(0.3);
    }
    const outcomes = await net.until(Promise.all(writes));
    expect(new Set(outcomes.filter(Boolean))).toEqual(new Set(['ERR_HOLDFAST_PEER_LOST']));
    const found = new Uint8Array(PAGE);
    net.memory.peekDurable(8 * PAGE, found);
    for (const index of acknowledged) expect(found[index * 64]).toBe(index + 1);
    expect(acknowledged.length).toBeGreaterThan(10);
    expect(acknowledged.length).toBeLessThan(40);
  });
});

describe('hostile headers', () => {
  const good = encodeCommand(command('read', 1));
  const change = (at: number, ...values: number[]) => {
    const bytes = Uint8Array.from(good);
    bytes.set(values, at);
    return bytes;
  };
  const ones = (count: number) => new Array<number>(count).fill(255);
  test.each([
    ['nothing', new Uint8Array(0)],
    ['half a header', good.subarray(0, 32)],
    ['more than a header', Buffer.concat([good, good])],
    ['another version', change(0, 9)],
    ['an unknown operation', change(1, 77)],
    ['an unknown flag', change(2, 128)],
    ['a tag', change(8, 1)],
    ['a length of 2^64 - 1', change(40, ...ones(8))],
    ['a length of 16 MiB', change(40, 0, 0, 0, 1)],
    ['address and length that wrap around', change(32, ...ones(16))],
    ['data that do not come', Buffer.from(encodeCommand(command('write', 1)))],
  ])('%s is refused, told in the log, and the session goes on', async (_what, header) => {
    const net = await new UnitNetwork().start();
    await net.grant('ann', 1);
    expect(await net.outcome(net.raw('ann', header))).toBe('ERR_HOLDFAST_BAD_FRAME');
    expect(refusals(net)).toEqual(['ann BAD_FRAME 1']);
    expect(await net.outcome(net.raw('ann', good))).toBe('done');
    expect(net.unit.status).toMatchObject({ reads: 1, writes: 0 });
  });

  test('data beside a read, or of another length than a write says', async () => {
    const net = await new UnitNetwork().start();
    await net.grant('ann', 1);
    const write = encodeCommand(command('write', 1));
    expect(await net.outcome(net.raw('ann', good, [new Uint8Array(8)]))).toBe('ERR_HOLDFAST_BAD_FRAME');
    expect(await net.outcome(net.raw('ann', write, [new Uint8Array(9)]))).toBe('ERR_HOLDFAST_BAD_FRAME');
    expect(await net.outcome(net.raw('ann', write, [new Uint8Array(7)]))).toBe('ERR_HOLDFAST_BAD_FRAME');
    expect(net.unit.status.writes).toBe(0);
  });

  test('a read whose answer is larger than was asked for fails, and the session goes on', async () => {
    const net = await new UnitNetwork().start();
    await net.grant('ann', 1);
    const big = encodeCommand(command('read', 1, { length: PAGE }));
    expect(await net.outcome(net.raw('ann', big, [], PAGE - 1))).toBe('ERR_HOLDFAST_INTERNAL');
    expect(await net.outcome(net.raw('ann', big, [], PAGE))).toBe('done');
  });

  test('more data than a command may carry ends the session before anything is held', async () => {
    const net = await new UnitNetwork().start();
    const wide = { ...memoryCommandMethod, maxRequestDataBytes: 2 * COMMAND_DATA_MAX_BYTES };
    const data = new Uint8Array(COMMAND_DATA_MAX_BYTES + 1);
    const sent = net.session('ann').request(wide, good, [data], { maxResponseDataBytes: 0 });
    expect(await net.outcome(sent)).toBe('ERR_HOLDFAST_PEER_LOST');
  });
});

describe('who has no business here', () => {
  test.each([
    ['with a wrong key of the cluster', { key: Buffer.from('another key of 32 bytes ........') }],
    ['of another cluster', { clusterId: 'another' }],
    ['of a name that the unit does not know', {}],
  ])('a node %s gets no session, and so no command through', async (_what, options) => {
    const net = await new UnitNetwork().start();
    const eve = net.node('eve', options);
    await net.until(eve.start());
    await net.pass(5000);
    expect(eve.session('unit')).toBeUndefined();
    expect(eve.links()[0]?.state).toBe('Connecting');
    expect(net.unit.status).toMatchObject({ reads: 0, writes: 0, refused: 0 });
  });

  test('nothing is served before tables are installed', async () => {
    const net = await new UnitNetwork().start();
    const ann = await net.access('ann', 1);
    await net.unit.install([]);
    expect(await net.outcome(ann.read(0, new Uint8Array(8)))).toBe('ERR_HOLDFAST_KEY_INVALID');
    await net.unit.install([TABLE]);
    expect(await net.outcome(ann.read(0, new Uint8Array(8)))).toBe('ERR_HOLDFAST_KEY_INVALID');
  });

  test('every command under a key of another session is refused, told in the log, and changes nothing', async () => {
    const net = await new UnitNetwork().start();
    await net.grant('ann', 1);
    const stolen = { key: key(1), range: { base: 0, lengthBytes: 4 * PAGE }, epoch: 1 };
    const ben = openAccess(net.session('ben'), stolen);
    for (const run of [
      () => ben.read(0, new Uint8Array(8)),
      () => ben.write(0, [new Uint8Array(8).fill(1)], { persist: true }),
      () => ben.persist(0, 8),
      () => ben.compareAndSwap(0, 0n, 1n),
      () => ben.watch(0, 8, 0),
    ])
      expect(await net.outcome(run())).toBe('ERR_HOLDFAST_KEY_INVALID');
    expect(refusals(net)).toEqual(['ben KEY_INVALID 5']);
    expect(net.unit.status).toMatchObject({ reads: 0, writes: 0, persists: 0, refused: 5 });
    expect(JSON.stringify(net.unit.auditEvents())).not.toContain(key(1));
  });

  test('a key replayed after its session came back anew is refused, and told in the log', async () => {
    const net = await new UnitNetwork().start();
    const ann = await net.access('ann', 1);
    expect(await net.outcome(ann.write(0, [new Uint8Array(8)]))).toBe('done');
    const before = net.session('ann');
    before.close('as told');
    expect(await net.outcome(ann.read(0, new Uint8Array(8)))).toBe('ERR_HOLDFAST_PEER_LOST');
    await net.pass(10_000);
    expect(net.session('ann').ordinal).toBeGreaterThan(before.ordinal);
    expect(net.unit.status.keys).toBe(0);
    const replayed = openAccess(net.session('ann'), { key: key(1), range: ann.range, epoch: 1 });
    expect(await net.outcome(replayed.read(0, new Uint8Array(8)))).toBe('ERR_HOLDFAST_KEY_INVALID');
    expect(await net.outcome(ann.read(0, new Uint8Array(8)))).toBe('ERR_HOLDFAST_PEER_LOST');
    expect(refusals(net)).toEqual(['ann KEY_INVALID 1']);
    expect(await net.outcome((await net.access('ann', 2)).read(0, new Uint8Array(8)))).toBe('done');
  });

  test('a slow primary: each of its writes has ended before it is revoked, or changes nothing', async () => {
    for (let revokedAfter = 3; revokedAfter < 17; revokedAfter += 1) {
      const net = await new UnitNetwork().start();
      const ann = await net.access('ann', 1);
      const ben = await net.access('ben', 2);
      const writes: Promise<string>[] = [];
      let revoked: Promise<Uint8Array> | undefined;
      for (let index = 0; index < 20; index += 1) {
        const write = ann.write(index * 64, [new Uint8Array(64).fill(index + 1)], { persist: true });
        writes.push(
          write.then(
            () => 'done',
            (error) => error.code,
          ),
        );
        await net.pass(0.3);
        if (index !== revokedAfter) continue;
        revoked = net.unit.revoke({ region: REGION, right: 'write', exceptPeer: 'ben' }).then(async (count) => {
          expect(count).toBe(1);
          const durable = new Uint8Array(20 * 64);
          net.memory.peekDurable(8 * PAGE, durable);
          return durable;
        });
      }
      const atTakeOver = await net.until(revoked!);
      const outcomes = await net.until(Promise.all(writes));
      const later = new Uint8Array(20 * 64);
      await net.until(ben.read(0, later));
      expect(new Set(outcomes)).toEqual(new Set(['done', 'ERR_HOLDFAST_KEY_INVALID']));
      for (const [index, outcome] of outcomes.entries()) {
        const expected = outcome === 'done' ? index + 1 : 0;
        expect([atTakeOver[index * 64], later[index * 64]]).toEqual([expected, expected]);
      }
    }
  });
});
