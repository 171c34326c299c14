/** Public as `holdfast/testing`: temporary devices, injected faults, simulated clusters. */
export {};
