/**
 * From the text of a configuration to the settings of one node. Pure: reading the file is config-file.ts.
 *
 * One text describes the whole cluster, and every server reads the same one: a node takes its own part out of it. What
 * comes out has no defaults left to fill in, paths are absolute, and names point at what exists.
 */
import { dirname, resolve } from 'node:path';
import type { z } from 'zod';
import { HoldfastError } from '../base/errors.ts';
import { type Address, formatAddress } from '../base/network.ts';
import type { Rates } from '../checkpoint/pace.ts';
import type { PersistMeans } from '../storage/region.ts';
import { isLocalAddress } from './address.ts';
import {
  type ClusterSettings,
  configSchema,
  type ExportSettings,
  type MirroredRegionSettings,
  type NodeSettings,
  type VolumeSettings,
} from './config-schema.ts';
import { type ConfigPath, type ConfigProblem, ConfigText } from './config-text.ts';
import { nearest } from './nearest.ts';

export interface MemberConfig {
  readonly node: string;
  /** As the configuration has it; absolute on this node's own member. */
  readonly device: string;
  readonly metadata: 'internal' | { readonly file: string };
}

export interface TieBreakerConfig {
  readonly node: string;
  /** As the configuration has it; absolute on the tie-breaker's own node. */
  readonly stateFile: string;
}

export interface VolumeConfig {
  readonly name: string;
  readonly id: string;
  readonly sizeBytes: number;
  readonly ackMode: 'durable';
  /** `majority`: the members and the tie-breaker decide; else what each member does by itself. */
  readonly onLostPeer: 'suspend' | 'continue' | 'majority' | { readonly preferred: string };
  /** Exactly where a majority decides. */
  readonly tieBreaker: TieBreakerConfig | undefined;
  /** In order: a new volume starts with access at the first. */
  readonly members: readonly MemberConfig[];
  readonly policingExtentBytes: number;
  readonly activityLogExtentBytes: number;
  readonly bitmapGrainBytes: number;
}

export type ExportTarget =
  | { readonly kind: 'volume'; readonly volume: string }
  | { readonly kind: 'device'; readonly path: string };

export interface ExportConfig {
  readonly name: string;
  readonly address: Address;
  readonly target: ExportTarget;
  readonly readOnly: boolean;
  /** Clients of other machines may come: said by name, since NBD asks nobody for a key. */
  readonly allowRemote: boolean;
}

export interface MemoryUnitConfig {
  /** Name of the unit, and of its node. */
  readonly unit: string;
  /** As the configuration has it; absolute on the unit's own node. */
  readonly file: string;
  readonly sizeBytes: number;
  readonly means: 'auto' | PersistMeans;
  /** The node that has the manager. */
  readonly manager: string;
  readonly administrators: readonly string[];
  /** Undefined: every peer. */
  readonly creators: readonly string[] | undefined;
  readonly planePort?: number | undefined;
  /** Of each peer; empty: no limit. */
  readonly rates: Rates;
}

/** One of the two units of a mirrored region. */
export interface LegConfig {
  /** Name of the unit, and of its node. */
  readonly unit: string;
  /** The node that has the unit's manager, and a vote. */
  readonly manager: string;
  /** Where the vote is kept. As the configuration has it; absolute on the manager's own node. */
  readonly stateFile: string;
}

/** A region of the same name in two units. */
export interface MirroredRegionConfig {
  readonly name: string;
  /** Of its register: 32 hexadecimal digits. */
  readonly id: string;
  /** In an order that stays: the register calls them `a` and `b`. */
  readonly units: readonly [LegConfig, LegConfig];
  readonly tieBreaker: TieBreakerConfig;
}

export interface PeerConfig {
  readonly name: string;
  /** None: it is a client, and dials. */
  readonly addresses: readonly Address[];
}

/** All that one server needs to know. */
export interface NodeConfig {
  readonly source: string;
  readonly cluster: string;
  readonly name: string;
  /** Undefined only where there is no other node. */
  readonly keyFile: string | undefined;
  readonly link: 'tls' | 'dedicated';
  readonly heartbeatMs: number;
  readonly leaseMs: number;
  readonly listen: Address | undefined;
  /** Where the others reach it, best path first. */
  readonly addresses: readonly Address[];
  readonly peers: readonly PeerConfig[];
  /** Path of the control socket. */
  readonly control: string;
  readonly engine: 'auto' | 'io_uring' | 'threads';
  readonly direct: 'auto' | 'required' | 'off';
  /** Those that this node is a member of. */
  readonly volumes: readonly VolumeConfig[];
  /** Those that this node has a vote in and no copy of. */
  readonly tieBreakerOf: readonly VolumeConfig[];
  readonly exports: readonly ExportConfig[];
  /** The unit that this node has. */
  readonly memoryUnit: MemoryUnitConfig | undefined;
  /** The unit whose manager this node has: its own, or another node's. */
  readonly managerOf: MemoryUnitConfig | undefined;
  /** All of the cluster. */
  readonly mirroredRegions: readonly MirroredRegionConfig[];
}

/** Parses and checks a whole configuration. Throws ERR_HOLDFAST_CONFIG with a line for each problem. */
export function parseClusterConfig(source: string, text: string): ClusterSettings {
  const parsed: ConfigText = new ConfigText(source, text);
  const result = configSchema.safeParse(parsed.value);
  if (!result.success) parsed.fail(result.error.issues.flatMap((issue) => problemsOf(issue, [], parsed.value)));
  const problems = crossCheck(result.data);
  if (problems.length > 0) parsed.fail(problems);
  return result.data;
}

/**
 * Takes one node's part out of a configuration. `nodeName` goes before the text's own `node`. Relative paths count from
 * the folder of `source`. Throws ERR_HOLDFAST_CONFIG if it is not clear which node is meant.
 */
export function nodeConfig(source: string, settings: ClusterSettings, nodeName?: string): NodeConfig {
  const node = chooseNode(source, settings, nodeName ?? settings.node);
  const folder = dirname(resolve(source));
  const absolute = (path: string) => resolve(folder, path);
  const listen = node.listen ?? node.addresses[0];
  const others = settings.nodes.filter((other) => other !== node);
  const units = settings.nodes.flatMap((each) => memoryUnitConfig(each, node.name, absolute));
  return {
    source,
    cluster: settings.cluster,
    name: node.name,
    keyFile: settings.keyFile === undefined ? undefined : absolute(settings.keyFile),
    link: settings.link,
    heartbeatMs: settings.heartbeatMs,
    leaseMs: settings.leaseMs,
    listen,
    addresses: node.addresses,
    // Two nodes that only dial never meet.
    peers: others
      .filter(({ addresses }) => listen !== undefined || addresses.length > 0)
      .map(({ name, addresses }) => ({ name, addresses })),
    control: absolute(node.control ?? `${node.name}.control.sock`),
    engine: node.engine,
    direct: node.direct,
    volumes: settings.volumes
      .filter((volume) => volume.members.some((member) => member.node === node.name))
      .map((volume) => volumeConfig(volume, node.name, absolute)),
    tieBreakerOf: settings.volumes
      .filter((volume) => volume.tieBreaker?.node === node.name)
      .map((volume) => volumeConfig(volume, node.name, absolute)),
    exports: node.exports.map((exported) => exportConfig(exported, absolute)),
    memoryUnit: units.find(({ unit }) => unit === node.name),
    managerOf: units.find(({ manager }) => manager === node.name),
    mirroredRegions: settings.mirroredRegions.map((region) => mirroredRegionConfig(region, units, node.name, absolute)),
  };
}

function mirroredRegionConfig(
  { units, tieBreaker, ...rest }: MirroredRegionSettings,
  managed: readonly MemoryUnitConfig[],
  own: string,
  absolute: (path: string) => string,
): MirroredRegionConfig {
  const placed = (node: string, path: string) => (node === own ? absolute(path) : path);
  const legs = units.map(({ unit, stateFile }): LegConfig => {
    const { manager } = managed.find((each) => each.unit === unit)!;
    return { unit, manager, stateFile: placed(manager, stateFile) };
  });
  const { node, stateFile } = tieBreaker;
  return { ...rest, units: [legs[0]!, legs[1]!], tieBreaker: { node, stateFile: placed(node, stateFile) } };
}

function memoryUnitConfig(
  { name, memoryUnit }: NodeSettings,
  own: string,
  absolute: (path: string) => string,
): MemoryUnitConfig[] {
  if (memoryUnit === undefined) return [];
  const { file, manager = name, creators, commandsPerSecond, bytesPerSecond, ...rest } = memoryUnit;
  const rates = {
    ...(commandsPerSecond !== undefined && { commandsPerSecond }),
    ...(bytesPerSecond !== undefined && { bytesPerSecond }),
  };
  return [{ ...rest, unit: name, file: name === own ? absolute(file) : file, manager, creators, rates }];
}

function chooseNode(source: string, settings: ClusterSettings, nodeName: string | undefined): NodeSettings {
  const names = settings.nodes.map((node) => node.name);
  const only = settings.nodes.length === 1 ? settings.nodes[0] : undefined;
  const node = nodeName === undefined ? only : settings.nodes.find((candidate) => candidate.name === nodeName);
  if (node) return node;
  const problem =
    nodeName === undefined
      ? 'does not say which node this is; give --node NAME'
      : `has no node "${nodeName}"${meant(nodeName, names) ?? '; name one that it has'}`;
  throw new HoldfastError('ERR_HOLDFAST_CONFIG', `${source}: ${problem} (it has ${names.join(', ')})`);
}

function volumeConfig(volume: VolumeSettings, own: string, absolute: (path: string) => string): VolumeConfig {
  const { quorum, onLostPeer, tieBreaker, members, ...rest } = volume;
  return {
    ...rest,
    onLostPeer: quorum === 'majority' ? quorum : (onLostPeer ?? 'suspend'),
    tieBreaker: tieBreaker?.node === own ? { node: own, stateFile: absolute(tieBreaker.stateFile) } : tieBreaker,
    members: members.map((member) => ownPaths(member, own, absolute)),
  };
}

function ownPaths(member: MemberConfig, own: string, absolute: (path: string) => string): MemberConfig {
  if (member.node !== own) return member;
  const metadata = member.metadata === 'internal' ? member.metadata : { file: absolute(member.metadata.file) };
  return { node: member.node, device: absolute(member.device), metadata };
}

function exportConfig(exported: ExportSettings, absolute: (path: string) => string): ExportConfig {
  const { address, readOnly, allowRemote, volume, device } = exported;
  const target: ExportTarget =
    volume !== undefined ? { kind: 'volume', volume } : { kind: 'device', path: absolute(device!) };
  return {
    name: exported.name ?? volume!,
    address: address.kind === 'unix' ? { kind: 'unix', path: absolute(address.path) } : address,
    target,
    readOnly,
    allowRemote,
  };
}

// --- Problems of one value, from the schema -------------------------------------------------------------------------

function problemsOf(issue: z.core.$ZodIssue, prefix: ConfigPath, root: unknown): ConfigProblem[] {
  const path = [...prefix, ...(issue.path as (string | number)[])];
  if (issue.code === 'unrecognized_keys') {
    const known = settingsAt(path);
    return issue.keys.map((key) => ({ path: [...path, key], atName: true, message: unknownSetting(key, known) }));
  }
  if (issue.code === 'invalid_union') {
    // Somebody who wrote an object meant the branch that takes one: its complaints are the useful ones.
    const branch = issue.errors.find((issues) => !issues.some((inner) => inner.path.length === 0 && isOfType(inner)));
    if (branch) return branch.flatMap((inner) => problemsOf(inner, path, root));
  }
  return [{ path, message: messageOf(issue, valueAt(root, path)) }];
}

function isOfType(issue: z.core.$ZodIssue): boolean {
  return issue.code === 'invalid_type' || issue.code === 'invalid_value';
}

function messageOf(issue: z.core.$ZodIssue, value: unknown): string {
  if (issue.code === 'invalid_type') {
    const wanted = WANTED[issue.expected] ?? issue.expected;
    return value === undefined ? `is missing; give ${wanted}` : `is ${kindOf(value)}; give ${wanted}`;
  }
  if (issue.code === 'invalid_value') {
    const allowed = issue.values.map(String);
    const hint = typeof value === 'string' ? meant(value, allowed) : undefined;
    const shown = value === undefined ? 'is missing' : `${JSON.stringify(value)?.slice(0, 80)} is not known`;
    return `${shown}${hint ?? `; give ${allowed.map((word) => `"${word}"`).join(' or ')}`}`;
  }
  return value === undefined && issue.code === 'invalid_union' ? `is missing; ${issue.message}` : issue.message;
}

const WANTED: Readonly<Record<string, string>> = {
  string: 'a text in double quotes',
  number: 'a number',
  int: 'a whole number',
  boolean: 'true or false',
  array: 'a list in [ ]',
  object: 'settings in { }',
};

function kindOf(value: unknown): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'a list';
  return typeof value === 'object' ? 'a group of settings' : `a ${typeof value === 'string' ? 'text' : typeof value}`;
}

/** Settings that people look for here and that stand elsewhere, or nowhere on purpose. */
const ELSEWHERE: Readonly<Record<string, string>> = {
  key: 'a key in a configuration is read by too many; put it in a file of mode 0600 and give "keyFile"',
  psk: 'a key in a configuration is read by too many; put it in a file of mode 0600 and give "keyFile"',
  password: 'a key in a configuration is read by too many; put it in a file of mode 0600 and give "keyFile"',
  peers: 'every server is one of "nodes", and all the others are its peers',
};

function unknownSetting(key: string, known: readonly string[]): string {
  const shown = `unknown setting "${key.slice(0, 80)}"`;
  const elsewhere = Object.hasOwn(ELSEWHERE, key) ? ELSEWHERE[key] : undefined;
  return `${shown}${elsewhere ? `; ${elsewhere}` : (meant(key, known) ?? `; known here: ${known.join(', ')}`)}`;
}

function meant(word: string, candidates: readonly string[]): string | undefined {
  const near = nearest(word, candidates);
  return near === undefined ? undefined : `; did you mean "${near}"?`;
}

function valueAt(root: unknown, path: ConfigPath): unknown {
  let value = root;
  for (const step of path) {
    if (typeof value !== 'object' || value === null) return undefined;
    value = (value as Record<string | number, unknown>)[step];
  }
  return value;
}

/** The names that the schema knows at a path. */
function settingsAt(path: ConfigPath): string[] {
  let schemas: z.core.$ZodType[] = [configSchema];
  for (const step of path) schemas = schemas.flatMap(alternatives).flatMap((schema) => childOf(schema, step));
  return schemas
    .flatMap(alternatives)
    .flatMap((schema) => Object.keys((schema as z.ZodObject).def.shape ?? {}))
    .filter((name) => !name.startsWith('$'));
}

/** The schemas that stand behind defaults, optionals, transforms and unions. */
function alternatives(schema: z.core.$ZodType): z.core.$ZodType[] {
  const def = schema._zod.def as unknown as Record<string, unknown> & { type: string };
  if (def.type === 'union') return (def.options as z.core.$ZodType[]).flatMap(alternatives);
  const inner = (def.innerType ?? def.in) as z.core.$ZodType | undefined;
  return inner ? alternatives(inner) : [schema];
}

function childOf(schema: z.core.$ZodType, step: string | number): z.core.$ZodType[] {
  const def = schema._zod.def as unknown as Record<string, unknown>;
  const child = typeof step === 'number' ? def.element : (def.shape as Record<string, unknown>)?.[step];
  return child ? [child as z.core.$ZodType] : [];
}

// --- Problems between values ----------------------------------------------------------------------------------------

function crossCheck(settings: ClusterSettings): ConfigProblem[] {
  return [
    ...checkNode(settings),
    ...checkTimes(settings),
    ...doubled(settings.nodes.map((node, index) => [node.name, ['nodes', index, 'name']])),
    ...doubled(settings.volumes.map((volume, index) => [volume.name, ['volumes', index, 'name']])),
    ...doubled([
      ...settings.volumes.map(({ id }, index): Named => [id.replaceAll('-', ''), ['volumes', index, 'id']]),
      ...settings.mirroredRegions.map(({ id }, index): Named => [id, ['mirroredRegions', index, 'id']]),
    ]),
    ...settings.volumes.flatMap((_, index) => checkVolume(settings, index)),
    ...doubled(settings.mirroredRegions.map(({ name }, index) => [name, ['mirroredRegions', index, 'name']])),
    ...settings.mirroredRegions.flatMap((_, index) => checkMirroredRegion(settings, index)),
    ...checkPlaces(settings),
    ...settings.nodes.flatMap((_, index) => [
      ...checkAddresses(settings, index),
      ...checkExports(settings, index),
      ...checkMemoryUnit(settings, index),
    ]),
    ...doubled(
      settings.nodes.flatMap(({ name, memoryUnit }, index): Named[] =>
        memoryUnit ? [[memoryUnit.manager ?? name, ['nodes', index, 'memoryUnit', 'manager']]] : [],
      ),
      'manages a unit already; a node manages one',
    ),
  ];
}

type Named = readonly [value: string, path: ConfigPath];

function doubled(values: readonly Named[], problem = 'is used twice; give each its own'): ConfigProblem[] {
  const seen = new Set<string>();
  return values.flatMap(([value, path]) => {
    if (seen.has(value)) return [{ path, message: `"${value}" ${problem}` }];
    seen.add(value);
    return [];
  });
}

function checkNode(settings: ClusterSettings): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const names = settings.nodes.map((node) => node.name);
  if (settings.node !== undefined && !names.includes(settings.node))
    problems.push({ path: ['node'], message: noNode(settings.node, names) });
  if (settings.nodes.length > 1 && settings.keyFile === undefined)
    problems.push({
      path: ['keyFile'],
      message: 'is missing; make a key by `holdfast make-key FILE`, the same on all',
    });
  return problems;
}

function noNode(name: string, names: readonly string[]): string {
  return `there is no node "${name}"${meant(name, names) ?? `; the nodes are ${names.join(', ')}`}`;
}

function checkTimes({ heartbeatMs, leaseMs }: ClusterSettings): ConfigProblem[] {
  if (leaseMs >= 2 * heartbeatMs) return [];
  const message = `${leaseMs} ms is less than two heartbeats (${heartbeatMs} ms each): one lost message would end the session; take ${6 * heartbeatMs}`;
  return [{ path: ['leaseMs'], message }];
}

function checkVolume(settings: ClusterSettings, index: number): ConfigProblem[] {
  const volume = settings.volumes[index]!;
  const names = settings.nodes.map((node) => node.name);
  const members = volume.members.map((member) => member.node);
  const at = (...path: (string | number)[]) => ['volumes', index, ...path];
  const problems = doubled(members.map((member, place) => [member, at('members', place, 'node')]));
  for (const [place, member] of members.entries())
    if (!names.includes(member)) problems.push({ path: at('members', place, 'node'), message: noNode(member, names) });
  for (const { path, message } of checkQuorum(volume, members, names)) problems.push({ path: at(...path), message });
  if (volume.bitmapGrainBytes > volume.activityLogExtentBytes)
    problems.push({
      path: at('bitmapGrainBytes'),
      message: 'is larger than activityLogExtentBytes; take a smaller one',
    });
  return problems;
}

/** Who decides when the members have lost each other: exactly one way is named. */
function checkQuorum(volume: VolumeSettings, members: readonly string[], names: readonly string[]): ConfigProblem[] {
  const { quorum, tieBreaker, onLostPeer } = volume;
  const problems: ConfigProblem[] = [];
  if (quorum === 'majority' && tieBreaker === undefined) {
    const message = `"majority" of two members is both: a third has to vote; give "tieBreaker": {"node": NAME, "stateFile": PATH}`;
    problems.push({ path: ['quorum'], message });
  }
  if (quorum === 'majority' && onLostPeer !== undefined)
    problems.push({ path: ['onLostPeer'], message: 'is decided by the majority; take this out, or "quorum"' });
  if (quorum === 'none' && tieBreaker !== undefined)
    problems.push({
      path: ['tieBreaker'],
      message: 'has no vote without "quorum": "majority"; give it, or take this out',
    });
  if (tieBreaker !== undefined && !names.includes(tieBreaker.node))
    problems.push({ path: ['tieBreaker', 'node'], message: noNode(tieBreaker.node, names) });
  if (tieBreaker !== undefined && members.includes(tieBreaker.node)) {
    const message = `"${tieBreaker.node}" is a member and has a vote already; name a node that is none`;
    problems.push({ path: ['tieBreaker', 'node'], message });
  }
  if (typeof onLostPeer === 'object' && !members.includes(onLostPeer.preferred)) {
    const message = `"${onLostPeer.preferred}" is not a member; the members are ${members.join(', ')}`;
    problems.push({ path: ['onLostPeer', 'preferred'], message });
  }
  return problems;
}

/** No device or file of a node may have two uses: each would overwrite the other. */
function checkPlaces(settings: ClusterSettings): ConfigProblem[] {
  const places: Named[] = [];
  for (const [index, volume] of settings.volumes.entries())
    for (const [place, member] of volume.members.entries()) {
      const path = ['volumes', index, 'members', place];
      places.push([`${member.node}:${member.device}`, [...path, 'device']]);
      if (member.metadata !== 'internal')
        places.push([`${member.node}:${member.metadata.file}`, [...path, 'metadata', 'file']]);
    }
  for (const [index, { tieBreaker }] of settings.volumes.entries())
    if (tieBreaker !== undefined)
      places.push([`${tieBreaker.node}:${tieBreaker.stateFile}`, ['volumes', index, 'tieBreaker', 'stateFile']]);
  for (const [index, { units, tieBreaker }] of settings.mirroredRegions.entries()) {
    const path = ['mirroredRegions', index];
    for (const [place, { unit, stateFile }] of units.entries())
      places.push([`${managerOf(settings, unit) ?? unit}:${stateFile}`, [...path, 'units', place, 'stateFile']]);
    places.push([`${tieBreaker.node}:${tieBreaker.stateFile}`, [...path, 'tieBreaker', 'stateFile']]);
  }
  for (const [index, { name, memoryUnit }] of settings.nodes.entries())
    if (memoryUnit !== undefined) places.push([`${name}:${memoryUnit.file}`, ['nodes', index, 'memoryUnit', 'file']]);
  for (const [index, node] of settings.nodes.entries())
    for (const [place, exported] of node.exports.entries())
      if (exported.device !== undefined)
        places.push([`${node.name}:${exported.device}`, ['nodes', index, 'exports', place, 'device']]);
  return doubled(places);
}

function checkAddresses(settings: ClusterSettings, index: number): ConfigProblem[] {
  const node = settings.nodes[index]!;
  const problems: ConfigProblem[] = [];
  if (settings.nodes.length > 1 && node.addresses.length === 0 && !isClient(settings, node))
    problems.push({ path: ['nodes', index, 'addresses'], message: 'is missing; say where the others reach this node' });
  const own: Named[] = node.addresses.map((address, place) => [
    formatAddress(address),
    ['nodes', index, 'addresses', place],
  ]);
  const exportAddresses = new Map<string, ConfigPath>();
  for (const [place, exported] of node.exports.entries())
    exportAddresses.set(formatAddress(exported.address), ['nodes', index, 'exports', place, 'address']);
  if (node.control !== undefined) own.push([`unix:${node.control}`, ['nodes', index, 'control']]);
  return [...problems, ...doubled([...own, ...exportAddresses])];
}

/** Nobody has to reach it. */
function isClient(settings: ClusterSettings, { name, memoryUnit }: NodeSettings): boolean {
  const serves = (volume: VolumeSettings) =>
    volume.tieBreaker?.node === name || volume.members.some((member) => member.node === name);
  const manages = settings.nodes.some((other) => other.memoryUnit?.manager === name);
  const votes = settings.mirroredRegions.some(({ tieBreaker }) => tieBreaker.node === name);
  return memoryUnit === undefined && !manages && !votes && !settings.volumes.some(serves);
}

/** The node that has a unit's manager; undefined if there is no such unit. */
function managerOf(settings: ClusterSettings, unit: string): string | undefined {
  const { memoryUnit } = settings.nodes.find(({ name }) => name === unit) ?? {};
  return memoryUnit && (memoryUnit.manager ?? unit);
}

/** Two units, each with its manager, that no one node's loss takes away together; and three that vote. */
function checkMirroredRegion(settings: ClusterSettings, index: number): ConfigProblem[] {
  const { units, tieBreaker } = settings.mirroredRegions[index]!;
  const names = settings.nodes.map(({ name }) => name);
  const problems: ConfigProblem[] = [];
  const problem = (path: ConfigPath, message: string) =>
    problems.push({ path: ['mirroredRegions', index, ...path], message });
  const isDoubled = units[0]!.unit === units[1]!.unit;
  if (isDoubled)
    problem(['units', 1, 'unit'], `"${units[1]!.unit}" is the first one already; a mirror takes two units`);
  for (const [place, { unit }] of units.entries()) {
    const at = ['units', place, 'unit'];
    const manager = managerOf(settings, unit);
    if (!names.includes(unit)) problem(at, noNode(unit, names));
    else if (manager === undefined) problem(at, `node "${unit}" has no memory unit; give it a "memoryUnit"`);
    else if (!isDoubled && manager === units[1 - place]!.unit)
      problem(
        at,
        `"${manager}" manages it, and is the other unit: both would be lost together; let "${unit}" manage it`,
      );
  }
  const at = ['tieBreaker', 'node'];
  const managed = units.find(({ unit }) => managerOf(settings, unit) === tieBreaker.node)?.unit;
  if (!names.includes(tieBreaker.node)) problem(at, noNode(tieBreaker.node, names));
  else if (managed !== undefined)
    problem(at, `"${tieBreaker.node}" has a vote already, as the manager of unit "${managed}"; name a third node`);
  return problems;
}

function checkMemoryUnit(settings: ClusterSettings, index: number): ConfigProblem[] {
  const { memoryUnit } = settings.nodes[index]!;
  if (memoryUnit === undefined) return [];
  const names = settings.nodes.map((node) => node.name);
  const { manager, administrators, creators = [] } = memoryUnit;
  const named: Named[] = [
    ...(manager === undefined ? [] : [[manager, ['manager']] as const]),
    ...administrators.map((peer, place): Named => [peer, ['administrators', place]]),
    ...creators.map((peer, place): Named => [peer, ['creators', place]]),
  ];
  return named
    .filter(([peer]) => !names.includes(peer))
    .map(([peer, path]) => ({ path: ['nodes', index, 'memoryUnit', ...path], message: noNode(peer, names) }));
}

function checkExports(settings: ClusterSettings, index: number): ConfigProblem[] {
  const node = settings.nodes[index]!;
  const problems = node.exports.flatMap((exported, place) =>
    checkExport(settings, node, exported).map(({ path, message }) => ({
      path: ['nodes', index, 'exports', place, ...path],
      message,
    })),
  );
  const names = node.exports.map((exported, place): Named => {
    const shown = `${exported.name ?? exported.volume ?? ''} at ${formatAddress(exported.address)}`;
    return [shown, ['nodes', index, 'exports', place]];
  });
  return [...problems, ...doubled(names)];
}

function checkExport(settings: ClusterSettings, node: NodeSettings, exported: ExportSettings): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const { volume, device, address } = exported;
  if ((volume === undefined) === (device === undefined))
    problems.push({ path: [], message: 'give either "volume" or "device"' });
  if (device !== undefined && exported.name === undefined)
    problems.push({ path: ['name'], message: 'is missing; clients ask for the device by it' });
  const found = settings.volumes.find((candidate) => candidate.name === volume);
  if (volume !== undefined && !found) {
    const names = settings.volumes.map((candidate) => candidate.name);
    problems.push({ path: ['volume'], message: `there is no volume "${volume}"${meant(volume, names) ?? ''}` });
  }
  if (found && !found.members.some((member) => member.node === node.name))
    problems.push({
      path: ['volume'],
      message: `"${node.name}" is not a member of "${volume}"; export it at a member`,
    });
  if (!isLocalAddress(address) && !exported.allowRemote) {
    const message = `${formatAddress(address)} can be reached from other machines, and NBD asks nobody for a key; take a Unix socket or 127.0.0.1, or say "allowRemote": true`;
    problems.push({ path: ['address'], message });
  }
  return problems;
}
