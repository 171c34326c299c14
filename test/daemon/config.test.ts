import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { isHoldfastError } from '../../lib/base/errors.ts';
import { nodeConfig, parseClusterConfig } from '../../lib/daemon/config.ts';
import { configSchema } from '../../lib/daemon/config-schema.ts';

const docs = readFileSync(fileURLToPath(new URL('../../docs/config.md', import.meta.url)), 'utf8');
const [sample, withTieBreaker, withMemoryUnit, withMirroredRegion] = [...docs.matchAll(/```jsonc\n([\s\S]*?)```/g)].map(
  (match) => match[1]!,
) as [string, string, string, string];

const base = `{
  "cluster": "office",
  "keyFile": "office.key",
  "nodes": [
    { "name": "a", "addresses": ["127.0.0.1:7700"] },
    { "name": "b", "addresses": ["127.0.0.1:7701"] }
  ],
  "volumes": [
    {
      "name": "data",
      "id": "0d2c5b1e-7d0a-4d8c-9a9b-6f1d3b8f2c11",
      "sizeBytes": "64 MiB",
      "members": [{ "node": "a", "device": "a.img" }, { "node": "b", "device": "b.img" }]
    }
  ]
}`;

/** The names of all settings in a JSON schema, however deep. */
function settingNames(schema: object): Set<string> {
  const names = new Set<string>();
  JSON.stringify(schema, (key, value) => {
    if (key === 'properties') for (const name of Object.keys(value)) if (name !== '$schema') names.add(name);
    return value;
  });
  return names;
}

/** The message of the refusal; fails if the text is taken. */
function refusal(text: string): string {
  try {
    parseClusterConfig('x.jsonc', text);
  } catch (error) {
    if (isHoldfastError(error, 'ERR_HOLDFAST_CONFIG')) return error.message;
    throw error;
  }
  throw new Error('the configuration was taken');
}

function changed(from: string, to: string): string {
  expect(base).toContain(from);
  return base.replace(from, to);
}

describe('the sample in docs/config.md', () => {
  it('is taken, for both nodes', () => {
    const settings = parseClusterConfig('/etc/holdfast/office.jsonc', sample);
    const a = nodeConfig('/etc/holdfast/office.jsonc', settings, 'a');
    expect(a.volumes[0]).toEqual({
      name: 'data',
      id: '0d2c5b1e-7d0a-4d8c-9a9b-6f1d3b8f2c11',
      sizeBytes: 100 * 1024 ** 3,
      ackMode: 'durable',
      onLostPeer: { preferred: 'a' },
      tieBreaker: undefined,
      members: [
        { node: 'a', device: '/dev/disk/by-id/nvme-A', metadata: 'internal' },
        { node: 'b', device: '/dev/disk/by-id/nvme-B', metadata: { file: '/var/lib/holdfast/data.meta' } },
      ],
      policingExtentBytes: 1024 ** 2,
      activityLogExtentBytes: 4 * 1024 ** 2,
      bitmapGrainBytes: 64 * 1024,
    });
    expect(a.listen).toEqual({ kind: 'tcp', host: '10.0.0.1', port: 7700 });
    expect(a.peers).toEqual([{ name: 'b', addresses: [{ kind: 'tcp', host: '10.0.0.2', port: 7700 }] }]);
    expect(a.exports).toEqual([
      {
        name: 'data',
        address: { kind: 'unix', path: '/run/holdfast/data.nbd' },
        target: { kind: 'volume', volume: 'data' },
        readOnly: false,
        allowRemote: false,
      },
    ]);
    expect([a.heartbeatMs, a.leaseMs, a.link, a.engine]).toEqual([500, 3000, 'tls', 'auto']);
    expect(nodeConfig('/etc/holdfast/office.jsonc', settings, 'b').control).toBe('/run/holdfast/b.sock');
  });

  it('with a tie-breaker is taken, for all three', () => {
    const settings = parseClusterConfig('x.jsonc', withTieBreaker);
    const [a, tie] = ['a', 'tie'].map((name) => nodeConfig('x.jsonc', settings, name));
    const tieBreaker = { node: 'tie', stateFile: '/var/lib/holdfast/data.vote' };
    expect(a!.volumes).toMatchObject([{ name: 'data', onLostPeer: 'majority', tieBreaker }]);
    expect(a!.tieBreakerOf).toEqual([]);
    expect(tie!.volumes).toEqual([]);
    expect(tie!.tieBreakerOf).toMatchObject([{ name: 'data', onLostPeer: 'majority', tieBreaker }]);
  });

  it('with a memory unit is taken, for the unit and for its clients', () => {
    const settings = parseClusterConfig('x.jsonc', withMemoryUnit);
    const [unit, primary] = ['unit', 'primary'].map((name) => nodeConfig('x.jsonc', settings, name));
    const config = {
      unit: 'unit',
      file: '/var/lib/holdfast/unit.memory',
      sizeBytes: 1024 ** 3,
      means: 'auto',
      manager: 'unit',
      administrators: [],
      creators: ['primary'],
      rates: {},
    };
    expect([unit!.memoryUnit, unit!.managerOf]).toEqual([config, config]);
    expect(unit!.peers).toEqual(['primary', 'backup'].map((name) => ({ name, addresses: [] })));
    expect([primary!.memoryUnit, primary!.managerOf, primary!.listen]).toEqual([undefined, undefined, undefined]);
    expect(primary!.peers).toEqual([{ name: 'unit', addresses: [{ kind: 'tcp', host: '10.0.0.5', port: 7700 }] }]);
  });

  it('with a mirrored region is taken, for its voters and for its clients', () => {
    const settings = parseClusterConfig('x.jsonc', withMirroredRegion);
    const stateFile = '/var/lib/holdfast/orders.vote';
    const region = {
      name: 'orders',
      id: '5b0f3c528a5e4f0e9d6c2f6c1d9e7a10',
      units: [
        { unit: 'a', manager: 'a', stateFile },
        { unit: 'b', manager: 'b', stateFile },
      ],
      tieBreaker: { node: 'tie', stateFile },
    };
    for (const name of ['a', 'b', 'tie', 'primary'])
      expect(nodeConfig('x.jsonc', settings, name).mirroredRegions).toEqual([region]);
  });

  it('describes every setting that the schema knows', () => {
    const names = settingNames(z.toJSONSchema(configSchema, { io: 'input' }));
    expect(names.size).toBeGreaterThan(20);
    for (const name of names) expect(docs, name).toMatch(new RegExp(`\`[^\`\\n]*\\b${name}\\b[^\`\\n]*\``));
  });
});

describe('a node takes its own part', () => {
  it('with relative paths from the folder of the file, and only its own ones', () => {
    const a = nodeConfig('/etc/holdfast/x.jsonc', parseClusterConfig('/etc/holdfast/x.jsonc', base), 'a');
    expect(a.keyFile).toBe('/etc/holdfast/office.key');
    expect(a.control).toBe('/etc/holdfast/a.control.sock');
    expect(a.volumes[0]!.members.map((member) => member.device)).toEqual(['/etc/holdfast/a.img', 'b.img']);
    expect(a.volumes[0]!.onLostPeer).toBe('suspend');
  });

  it('also as tie-breaker of one volume and member of another', () => {
    const text = withTieBreaker.replace('/var/lib/holdfast/data.vote', 'data.vote').replace(
      '"volumes": [',
      `"volumes": [{
          "name": "home", "id": "0d2c5b1e-7d0a-4d8c-9a9b-6f1d3b8f2c12", "sizeBytes": "1 MiB", "onLostPeer": "continue",
          "members": [{ "node": "tie", "device": "home.img" }, { "node": "a", "device": "home.img" }]
        },`,
    );
    const settings = parseClusterConfig('/etc/x.jsonc', text);
    const tie = nodeConfig('/etc/x.jsonc', settings, 'tie');
    expect(tie.volumes).toMatchObject([{ name: 'home', onLostPeer: 'continue', tieBreaker: undefined }]);
    expect(tie.tieBreakerOf).toMatchObject([{ name: 'data', tieBreaker: { stateFile: '/etc/data.vote' } }]);
    const [, data] = nodeConfig('/etc/x.jsonc', settings, 'a').volumes;
    expect(data!.tieBreaker!.stateFile).toBe('data.vote');
  });

  it('also as the manager of another one’s unit, whose path is not its own', () => {
    const text = base.replace(
      '"name": "b",',
      '"name": "b", "memoryUnit": {"file": "b.mem", "sizeBytes": "2M", "manager": "a"},',
    );
    const settings = parseClusterConfig('/etc/x.jsonc', text);
    const [a, b] = ['a', 'b'].map((name) => nodeConfig('/etc/x.jsonc', settings, name));
    expect([a!.memoryUnit, a!.managerOf]).toMatchObject([undefined, { unit: 'b', manager: 'a', file: 'b.mem' }]);
    expect([b!.memoryUnit, b!.managerOf]).toMatchObject([{ file: '/etc/b.mem', creators: undefined }, undefined]);
  });

  it('with the files of its own votes in mirrored regions: its unit’s manager’s, and a tie-breaker’s', () => {
    const text = withMirroredRegion
      .replaceAll('/var/lib/holdfast/orders.vote', 'orders.vote')
      .replace('"sizeBytes": "1 GiB"', '"sizeBytes": "1 GiB", "manager": "m"')
      .replace('{ "name": "tie",', '{ "name": "m", "addresses": ["10.0.0.8:7700"] }, { "name": "tie",');
    const settings = parseClusterConfig('/etc/x.jsonc', text);
    const own = (name: string) => {
      const { units, tieBreaker } = nodeConfig('/etc/x.jsonc', settings, name).mirroredRegions[0]!;
      return [...units, tieBreaker].map(({ stateFile }) => stateFile.startsWith('/etc/'));
    };
    expect(['a', 'm', 'b', 'tie'].map(own)).toEqual([
      [false, false, false],
      [true, false, false],
      [false, true, false],
      [false, false, true],
    ]);
  });

  it('and says so when it is not clear which node it is', () => {
    const settings = parseClusterConfig('x.jsonc', base);
    expect(() => nodeConfig('x.jsonc', settings)).toThrow('does not say which node this is; give --node NAME');
    expect(() => nodeConfig('x.jsonc', settings, 'c')).toThrow('has no node "c"');
    expect(nodeConfig('x.jsonc', { ...settings, node: 'b' }).name).toBe('b');
  });
});

describe('a mistake is named with its place and its mend', () => {
  it.each([
    ['"keyFile"', '"keyfile"', 'x.jsonc:3:3: keyfile: unknown setting "keyfile"; did you mean "keyFile"?'],
    ['"keyFile"', '"key"', 'x.jsonc:3:3: key: unknown setting "key"; a key in a configuration is read by too many'],
    [
      '"device": "b.img"',
      '"devise": "b.img"',
      ': volumes[0].members[1].devise: unknown setting "devise"; did you mean "device"?',
    ],
    ['"64 MiB"', '"64 MiBs"', 'x.jsonc:12:20: volumes[0].sizeBytes: is not a size'],
    ['"64 MiB"', '1048577', 'volumes[0].sizeBytes: 1048577 is not a multiple of 4096; take 1048576'],
    ['"64 MiB"', '-1', 'volumes[0].sizeBytes: is too small'],
    ['"64 MiB"', 'true', 'volumes[0].sizeBytes: is not a size'],
    [
      '"64 MiB",',
      '"64 MiB", "ackMode": "durabel",',
      'volumes[0].ackMode: "durabel" is not known; did you mean "durable"?',
    ],
    ['"64 MiB",', '"64 MiB", "bitmapGrainBytes": "100k",', 'is not a power of two; take 131072'],
    [
      '"64 MiB",',
      '"64 MiB", "onLostPeer": {"prefered": "a"},',
      'volumes[0].onLostPeer.prefered: unknown setting "prefered"; did you mean "preferred"?',
    ],
    [
      '"64 MiB",',
      '"64 MiB", "onLostPeer": "contine",',
      'volumes[0].onLostPeer: write "suspend", "continue" or {"preferred": NODE}',
    ],
    [
      '"64 MiB",',
      '"64 MiB", "quorum": "majorty",',
      'volumes[0].quorum: "majorty" is not known; did you mean "majority"?',
    ],
    [
      '"64 MiB",',
      '"64 MiB", "quorum": "majority",',
      'volumes[0].quorum: "majority" of two members is both: a third has to vote; give "tieBreaker"',
    ],
    [
      '"64 MiB",',
      '"64 MiB", "tieBreaker": {"node": "a", "stateFile": "x"},',
      'volumes[0].tieBreaker: has no vote without "quorum": "majority"',
    ],
    [
      '"64 MiB",',
      '"64 MiB", "quorum": "majority", "tieBreaker": {"node": "a", "stateFile": "x"},',
      'volumes[0].tieBreaker.node: "a" is a member and has a vote already',
    ],
    [
      '"64 MiB",',
      '"64 MiB", "quorum": "majority", "tieBreaker": {"node": "tie", "stateFile": "x"},',
      'volumes[0].tieBreaker.node: there is no node "tie"; the nodes are a, b',
    ],
    [
      '"64 MiB",',
      '"64 MiB", "quorum": "majority", "tieBreaker": {"node": "a", "stateFile": "a.img"},',
      'volumes[0].tieBreaker.stateFile: "a:a.img" is used twice',
    ],
    [
      '"64 MiB",',
      '"64 MiB", "quorum": "majority", "onLostPeer": "suspend", "tieBreaker": {"node": "a", "stateFile": "x"},',
      'volumes[0].onLostPeer: is decided by the majority; take this out, or "quorum"',
    ],
    ['"64 MiB",', '"64 MiB", "onLostPeer": {"preferred": "c"},', '"c" is not a member; the members are a, b'],
    ['"node": "b"', '"node": "bb"', 'volumes[0].members[1].node: there is no node "bb"; did you mean "b"?'],
    ['"node": "b"', '"node": "a"', 'volumes[0].members[1].node: "a" is used twice'],
    ['"127.0.0.1:7701"', '"127.0.0.1"', 'nodes[1].addresses[0]: "127.0.0.1" is not an address; write HOST:PORT'],
    ['"127.0.0.1:7701"', '"127.0.0.1:70000"', 'port 70000 does not exist'],
    ['"0d2c5b1e', '"0d2c5b1', 'volumes[0].id: is not a UUID'],
    ['"keyFile": "office.key",', '', 'keyFile: is missing; make a key by'],
    ['"cluster": "office",', '"cluster": 7,', 'x.jsonc:2:14: cluster: is a number; give a text in double quotes'],
    ['"cluster": "office",', '', 'cluster: is missing; give a text in double quotes'],
    ['"cluster": "office",', '"cluster": "office", "cluster": "home",', '"cluster" stands here twice; keep one'],
    ['"cluster": "office",', '"cluster": "office"', 'x.jsonc:3:3: a comma is missing before this'],
    ['"cluster": "office",', '"cluster": "office", "leaseMs": 600,', 'less than two heartbeats'],
    [
      '"name": "a", ',
      '"name": "a", "exports": [{"address": "unix:x.sock"}], ',
      'nodes[0].exports[0]: give either "volume" or "device"',
    ],
    [
      '"name": "a", ',
      '"name": "a", "exports": [{"volume": "dat", "address": "unix:x"}], ',
      'there is no volume "dat"; did you mean "data"?',
    ],
    [
      '"name": "a", ',
      '"name": "a", "exports": [{"volume": "data", "address": "0.0.0.0:10809"}], ',
      'NBD asks nobody for a key',
    ],
    [
      '"name": "a", ',
      '"name": "a", "exports": [{"device": "a.img", "name": "raw", "address": "unix:x"}], ',
      '"a:a.img" is used twice',
    ],
    [
      '"name": "a", ',
      `"name": "a", "exports": [{"volume": "data", "address": "unix:${'x'.repeat(120)}"}], `,
      'Linux takes 107',
    ],
    ['"name": "a", ', '"name": "../a", ', 'is not a name'],
    ['"name": "a", "addresses": ["127.0.0.1:7700"]', '"name": "a"', 'nodes[0].addresses: is missing; say where'],
    [
      '{ "name": "b",',
      '{ "name": "tie", "memoryUnit": {"file": "tie.mem", "sizeBytes": "1G"} }, { "name": "b",',
      'nodes[1].addresses: is missing; say where',
    ],
    [
      '"name": "a", ',
      '"name": "a", "memoryUnit": {"file": "m", "sizeBytes": "1M"}, ',
      'nodes[0].memoryUnit.sizeBytes: is too small; the least is 2097152 bytes',
    ],
    [
      '"name": "a", ',
      '"name": "a", "memoryUnit": {"file": "m", "sizeBytes": "1G", "means": "mapsync"}, ',
      'nodes[0].memoryUnit.means: "mapsync" is not known; did you mean "map-sync"?',
    ],
    [
      '"name": "a", ',
      '"name": "a", "memoryUnit": {"file": "m", "sizeBytes": "1G", "manager": "bb"}, ',
      'nodes[0].memoryUnit.manager: there is no node "bb"; did you mean "b"?',
    ],
    [
      '"name": "a", ',
      '"name": "a", "memoryUnit": {"file": "m", "sizeBytes": "1G", "administrators": ["b"], "creators": ["cyd"]}, ',
      'nodes[0].memoryUnit.creators[0]: there is no node "cyd"',
    ],
    [
      '"name": "a", ',
      '"name": "a", "memoryUnit": {"file": "a.img", "sizeBytes": "1G"}, ',
      'nodes[0].memoryUnit.file: "a:a.img" is used twice',
    ],
    [
      '{ "name": "b",',
      '{ "name": "b", "memoryUnit": {"file": "m", "sizeBytes": "1G", "manager": "c"} }, { "name": "c", "addresses": ["127.0.0.1:7702"], "memoryUnit": {"file": "m", "sizeBytes": "1G"} }, { "name": "d",',
      'nodes[2].memoryUnit.manager: "c" manages a unit already; a node manages one',
    ],
  ])('%s → %s', (from, to, message) => {
    expect(refusal(changed(from, to))).toContain(message);
  });

  it.each([
    ['{ "unit": "b",', '{ "unit": "a",', 'units[1].unit: "a" is the first one already; a mirror takes two units'],
    ['{ "unit": "b",', '{ "unit": "bb",', 'units[1].unit: there is no node "bb"; did you mean "b"?'],
    ['{ "unit": "b",', '{ "unit": "tie",', 'units[1].unit: node "tie" has no memory unit; give it a "memoryUnit"'],
    ['"5b0f3c52-', '"5b0f3c5-', 'mirroredRegions[0].id: is not a UUID; `uuidgen`'],
    ['"name": "orders"', '"name": "../orders"', 'mirroredRegions[0].name: is not a name'],
    ['{ "node": "tie",', '{ "node": "b",', 'tieBreaker.node: "b" has a vote already, as the manager of unit "b"'],
    ['{ "node": "tie",', '{ "node": "tea",', 'tieBreaker.node: there is no node "tea"; the nodes are'],
    ['{ "name": "tie", "addresses": ["10.0.0.7:7700"] }', '{ "name": "tie" }', 'nodes[2].addresses: is missing'],
    ['a.memory"', 'orders.vote"', '"a:/var/lib/holdfast/orders.vote" is used twice'],
    ['"sizeBytes": "1 GiB"', '"sizeBytes": "1 GiB", "manager": "b"', 'units[0].unit: "b" manages it, and is the other'],
    ['"tieBreaker": {', '"tieBraker": {', 'unknown setting "tieBraker"; did you mean "tieBreaker"?'],
  ])('of a mirrored region: %s → %s', (from, to, message) => {
    expect(withMirroredRegion).toContain(from);
    expect(refusal(withMirroredRegion.replace(from, to))).toContain(message);
  });

  it('two mirrored regions of one name or one id, or with a volume’s id, are refused', () => {
    const again = (name: string, id: string) => {
      const region = `{"name": "${name}", "id": "${id}", "units": [{"unit": "a", "stateFile": "x"}, {"unit": "b", "stateFile": "x"}], "tieBreaker": {"node": "tie", "stateFile": "x"}}, {`;
      return withMirroredRegion.replace('"mirroredRegions": [\n    {', `"mirroredRegions": [${region}`);
    };
    const other = '6b0f3c52-8a5e-4f0e-9d6c-2f6c1d9e7a10';
    expect(refusal(again('orders', other))).toContain('mirroredRegions[1].name: "orders" is used twice');
    expect(refusal(again('state', '5B0F3C528A5E4F0E9D6C2F6C1D9E7A10'))).toContain('mirroredRegions[1].id: "5b0f3c52');
    const volume = `"volumes": [{"name": "v", "id": "${other}", "sizeBytes": "1 MiB", "members": [{"node": "a", "device": "v"}, {"node": "b", "device": "v"}]}], `;
    const both = again('state', other).replace('"mirroredRegions"', `${volume}"mirroredRegions"`);
    expect(refusal(both)).toContain('mirroredRegions[0].id: "6b0f3c528a5e4f0e9d6c2f6c1d9e7a10" is used twice');
  });

  it('all problems of a text are told at once', () => {
    const text = changed('"cluster"', '"cluser"').replace('"device": "a.img"', '"device": 5');
    expect(refusal(text).split('\n')).toHaveLength(3);
  });

  it('an empty text, brackets without end and a binary file are refused', () => {
    expect(refusal('')).toContain('is empty; docs/config.md has a sample');
    expect(refusal('['.repeat(500_000))).toContain('x.jsonc');
    expect(refusal('\u0000\u0001\u0002')).toContain('x.jsonc:1:1');
    expect(refusal('x'.repeat(2_000_000))).toContain('is it really a configuration?');
  });
});
