/** Public as `holdfast/testing`: temporary devices, injected faults, simulated clusters. */
export { type RunEnd, Scheduler } from './scheduler.ts';
export { SimulatedClock, SimulatedProcess } from './simulated-clock.ts';
export {
  SimulatedCluster,
  type SimulatedClusterOptions,
  type SimulatedEnvironment,
  SimulatedNode,
} from './simulated-cluster.ts';
export { FAULTLESS_LINK, type LinkOptions, SimulatedNetwork } from './simulated-network.ts';
export { SimulatedRandom } from './simulated-random.ts';
export { Trace, type TraceOptions } from './trace.ts';
