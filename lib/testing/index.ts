/**
 * Public as `holdfast/testing`: temporary devices, injected faults, simulated clusters.
 *
 * @module holdfast/testing
 */
export {
  type FaultAction,
  type FaultOperation,
  FaultPlan,
  type FaultRule,
  FaultyDevice,
  type FaultyDeviceOptions,
  type InjectedFault,
} from '../storage/faulty-device.ts';
export {
  type CrashCheck,
  type CrashFailure,
  type CrashProgress,
  CrashRecorder,
  type CrashRecorderOptions,
  type CrashReport,
  type CrashState,
  type ReplayOptions,
} from './crash-recorder.ts';
export type { CrashKind, RecordedWrite } from './crash-recording.ts';
export {
  checkFlushed,
  checkLinearizable,
  checkLinearizableSince,
  INITIAL_VALUE,
  type Operation,
  type Violation,
} from './history.ts';
export { type SimulationOptions, type SimulationResult, simulateMirror } from './mirror-simulation.ts';
export {
  type MirroredUnitsPlan,
  type MirroredUnitsResult,
  simulateMirroredUnits,
} from './mirrored-units-simulation.ts';
export { type PairPlan, type PairSimulationResult, simulatePair } from './pair-simulation.ts';
export { type RunEnd, Scheduler } from './scheduler.ts';
export { SimulatedClock, SimulatedProcess } from './simulated-clock.ts';
export {
  SimulatedCluster,
  type SimulatedClusterOptions,
  type SimulatedEnvironment,
  SimulatedNode,
} from './simulated-cluster.ts';
export {
  type LatencyRange,
  SimulatedDisk,
  type SimulatedDiskOptions,
  type SimulatedOpenOptions,
} from './simulated-disk.ts';
export { FAULTLESS_LINK, type LinkOptions, SimulatedNetwork } from './simulated-network.ts';
export { SimulatedRandom } from './simulated-random.ts';
export { type ClientPlan, type Content, FAULT_KINDS, type FaultKind, type SimulationPlan } from './simulation-plan.ts';
export {
  type TemporaryDevice,
  type TemporaryDeviceOptions,
  temporaryDevice,
} from './temporary-device.ts';
export { Trace, type TraceOptions } from './trace.ts';
