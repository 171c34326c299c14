/** Exit codes of the command: part of its interface, documented in docs/cli.md. */
import type { HoldfastErrorCode } from '../base/errors.ts';

export const EXIT = {
  ok: 0,
  /** What was asked for failed. */
  failed: 1,
  /** The command line is wrong. */
  usage: 2,
  /** The configuration or the key file is wrong. */
  config: 3,
  /** No server answers on the control socket, or one is there already. */
  notRunning: 4,
  /** Refused, because data would be lost. */
  refused: 5,
  /** `status --check`: a volume is not in full health. */
  degraded: 6,
  /** Stopped by Ctrl-C. */
  interrupted: 130,
} as const;

const BY_CODE: Partial<Record<HoldfastErrorCode, number>> = {
  ERR_HOLDFAST_CONFIG: EXIT.config,
  ERR_HOLDFAST_NOT_RUNNING: EXIT.notRunning,
  ERR_HOLDFAST_ALREADY_RUNNING: EXIT.notRunning,
  ERR_HOLDFAST_CONSENT_NEEDED: EXIT.refused,
  ERR_HOLDFAST_DEVICE_EXISTS: EXIT.refused,
  ERR_HOLDFAST_DEVICE_HAS_DATA: EXIT.refused,
  ERR_HOLDFAST_DEVICE_NOT_BLANK: EXIT.refused,
  ERR_HOLDFAST_USAGE: EXIT.usage,
};

export function exitCodeOf(code: HoldfastErrorCode): number {
  return BY_CODE[code] ?? EXIT.failed;
}
