import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import type { DaemonStatus } from '../../lib/daemon/status.ts';
import { Office, online, type ServerName, until } from './office.ts';

let office: Office;

async function make(): Promise<void> {
  office = await Office.make({ tieBreaker: true });
  for (const name of ['a', 'b', 'tie'] as const) await office.create(name);
}

afterEach(() => office.remove());

async function startAll(names: readonly ServerName[]) {
  const started = await Promise.all(names.map((name) => office.start(name)));
  return new Map(names.map((name, index) => [name, started[index]!]));
}

const refused = (step: Promise<unknown>) =>
  step.then(
    () => expect.fail('it was not refused'),
    (error: { code: string; message: string }) => error,
  );

const codes = (status: DaemonStatus) => status.volumes[0]!.problems.map((problem) => problem.code);

describe('a tie-breaker', () => {
  it('votes, shows of what, and holds what was decided', async () => {
    await make();
    const servers = await startAll(['a', 'b', 'tie']);
    const { volumes } = await until(servers.get('a')!, (status) => online(status) && codes(status).length === 0);
    expect(volumes[0]!.voters).toEqual(['a', 'b', 'tie'].map((node) => ({ node, inReach: true, problem: null })));
    const status = servers.get('tie')!.status();
    expect(status.volumes).toEqual([]);
    expect(status.tieBreakers).toMatchObject([
      {
        volume: 'data',
        stateFile: join(office.folder, 'tie.vote'),
        members: [
          { node: 'a', connected: true },
          { node: 'b', connected: true },
        ],
        problem: null,
      },
    ]);
    const { record } = { record: readFileSync(join(office.folder, 'tie.vote')) };
    // The value of the voter file's first copy: a view of both members.
    expect(record.toString('latin1', 64 + 36, 64 + 36 + 40)).toMatch(/^[1-9] [0-9a-f]{32} [13] [01]/);
  });

  it('that is away is told, the servers go on; and a server that is left by the other goes on with its vote', async () => {
    await make();
    const servers = await startAll(['a', 'b', 'tie']);
    await until(servers.get('a')!, (status) => online(status) && codes(status).length === 0);
    await servers.get('tie')!.close();
    const status = await until(servers.get('a')!, (now) => codes(now).includes('HOLDFAST-VOTER-AWAY'));
    expect(status.volumes[0]!.state).toBe('Online');
    await office.start('tie');
    await until(servers.get('a')!, (now) => codes(now).length === 0);
    await servers.get('a')!.close();
    await until(servers.get('b')!, (now) => now.volumes[0]!.state === 'Degraded');
  });

  it('is needed by a server that starts alone, although it was the last to serve', async () => {
    await make();
    const servers = await startAll(['a', 'b', 'tie']);
    await until(servers.get('b')!, (status) => online(status) && codes(status).length === 0);
    await servers.get('a')!.close();
    await until(servers.get('b')!, (now) => now.volumes[0]!.state === 'Degraded');
    await servers.get('b')!.close();
    await servers.get('tie')!.close();
    const again = await office.start('b');
    const status = await until(again, (now) => codes(now).includes('HOLDFAST-NO-QUORUM'));
    expect(status.volumes[0]!.state).toBe('Suspended');
    await office.start('tie');
    await until(again, (now) => now.volumes[0]!.state === 'Degraded');
  });
});

describe('the state file', () => {
  it('is made once, and not made anew unless it is named', async () => {
    await make();
    const path = join(office.folder, 'tie.vote');
    const before = readFileSync(path);
    expect(before.length).toBe(65_536);
    const { code, message } = await refused(office.create('tie'));
    expect(code).toBe('ERR_HOLDFAST_DEVICE_EXISTS');
    expect(message).toContain(`--overwrite ${path}`);
    expect(readFileSync(path).equals(before)).toBe(true);
    await office.create('tie', [path]);
  });

  it('that is not there, or is of another volume, is told with its mend before anything starts', async () => {
    office = await Office.make({ tieBreaker: true });
    const missing = await refused(office.start('tie'));
    expect(missing.code).toBe('ERR_HOLDFAST_METADATA_MISSING');
    expect(missing.message).toContain(`holdfast create ${office.path} data --node tie`);
    expect(existsSync(join(office.folder, 'tie.sock'))).toBe(false);
    await office.create('tie');
    office.config.volumes[0].id = office.config.volumes[0].id.replace('0d2c', '1d2c');
    office.save();
    const other = await refused(office.start('tie'));
    expect(other.code).toBe('ERR_HOLDFAST_METADATA_MISMATCH');
    writeFileSync(join(office.folder, 'tie.vote'), 'no state');
    expect((await refused(office.start('tie'))).message).toMatch(/tie\.vote/);
  });
});
