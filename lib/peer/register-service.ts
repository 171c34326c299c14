/**
 * RegisterService: one per peer node. It holds the voters of this process, by register, and answers the proposers among
 * the register's other voters.
 *
 * Invariants:
 * - A voter's questions are answered one after the other, each when what it says is durable.
 * - A voter whose write failed answers nothing any more: what lies on its disk is not known until it is opened anew.
 * - Only those whom the register names as voters are answered, each for its own ballots, and only if they name the same
 *   voters in the same order: else two majorities need not have a voter in common.
 */
import { z } from 'zod';
import { assert, HoldfastError } from '../base/errors.ts';
import { type Ballot, VALUE_MAX_BYTES, type VoterState, type VoterStore } from './arbiter.ts';
import { NAME_PATTERN } from './handshake.ts';
import type { Method, PeerNode, PeerSession } from './peer.ts';
import {
  type AcceptAnswer,
  accept,
  COUNTER_MAX,
  type Look,
  type PrepareAnswer,
  prepare,
  VOTERS_MAX,
  type Vote,
} from './register.ts';

/** Each of a few voters has a question or two under way. */
const WAITING_MAX = 64;

const ballotSchema = z.strictObject({
  counter: z.int().min(0).max(COUNTER_MAX),
  node: z
    .int()
    .min(0)
    .max(VOTERS_MAX - 1),
});
const valueSchema = z
  .string()
  .max(VALUE_MAX_BYTES)
  .regex(/^[\x20-\x7e]*$/);
const whomShape = {
  register: z.string().regex(/^[0-9a-f]{32}$/),
  voters: z.array(z.string().regex(NAME_PATTERN)).min(1).max(VOTERS_MAX),
};
const questionShape = { ...whomShape, ballot: ballotSchema };
const refusedSchema = z.strictObject({ granted: z.literal(false), promised: ballotSchema });

const lookQuestion = z.strictObject(whomShape);
const lookAnswer: z.ZodType<Look> = z.strictObject({ accepted: ballotSchema, value: valueSchema });
const prepareQuestion = z.strictObject(questionShape);
const acceptQuestion = z.strictObject({ ...questionShape, value: valueSchema });
const prepareAnswer: z.ZodType<PrepareAnswer> = z.union([
  z.strictObject({ granted: z.literal(true), accepted: ballotSchema, value: valueSchema }),
  refusedSchema,
]);
const acceptAnswer: z.ZodType<AcceptAnswer> = z.union([z.strictObject({ granted: z.literal(true) }), refusedSchema]);

const WITHOUT_DATA = { channel: 'control', maxRequestDataBytes: 0, maxResponseDataBytes: 0 } as const;

/** Phase 1: a promise, and what was accepted last. */
export const prepareMethod: Method<z.infer<typeof prepareQuestion>, PrepareAnswer> = {
  ...WITHOUT_DATA,
  id: 30,
  name: 'register-prepare',
  request: prepareQuestion,
  response: prepareAnswer,
};

/** Phase 2: the value itself. */
export const acceptMethod: Method<z.infer<typeof acceptQuestion>, AcceptAnswer> = {
  ...WITHOUT_DATA,
  id: 31,
  name: 'register-accept',
  request: acceptQuestion,
  response: acceptAnswer,
};

/** What was accepted last; promises nothing. */
export const lookMethod: Method<z.infer<typeof lookQuestion>, Look> = {
  ...WITHOUT_DATA,
  id: 32,
  name: 'register-look',
  request: lookQuestion,
  response: lookAnswer,
};

/** Whose vote it is, about what, among whom, and where it is kept. */
export interface VoterOptions {
  /** 32 hex digits: the identifier of the volume or of the mirrored region. */
  readonly registerId: string;
  /** Names of the nodes that vote, in the same order everywhere. */
  readonly voters: readonly string[];
  /** The place of this node among them. */
  readonly self: number;
  readonly store: VoterStore;
}

/** A voter of this process. */
export class Voter {
  readonly registerId: string;
  readonly voters: readonly string[];
  readonly self: number;
  readonly #store: VoterStore;
  readonly #retire: () => void;
  /** As it is on disk. */
  #state: VoterState;
  #last: Promise<void> = Promise.resolve();
  #waiting = 0;
  #failure: HoldfastError | undefined;

  /** By RegisterService.add. @internal */
  constructor(options: VoterOptions, retire: () => void) {
    this.registerId = options.registerId;
    this.voters = options.voters;
    this.self = options.self;
    this.#store = options.store;
    this.#state = options.store.voter;
    this.#retire = retire;
  }

  /** What is durable. */
  get state(): VoterState {
    return this.#state;
  }

  /** Why it answers nothing any more. */
  get failure(): HoldfastError | undefined {
    return this.#failure;
  }

  /** @internal */
  look(): Promise<Look> {
    return this.#vote((state) => ({ state, answer: { accepted: state.accepted, value: state.value } }));
  }

  /** @internal */
  prepare(ballot: Ballot): Promise<PrepareAnswer> {
    return this.#vote((state) => prepare(state, ballot));
  }

  /** @internal */
  accept(ballot: Ballot, value: string): Promise<AcceptAnswer> {
    return this.#vote((state) => accept(state, ballot, value));
  }

  /** Answers no more; resolves when its store is no longer in use. */
  async close(): Promise<void> {
    this.#failure ??= new HoldfastError('ERR_HOLDFAST_CLOSED', `the voter of register ${this.registerId} is closed`);
    this.#retire();
    await this.#last;
  }

  async #vote<Answer>(decide: (state: VoterState) => Vote<Answer>): Promise<Answer> {
    if (this.#waiting >= WAITING_MAX)
      throw new HoldfastError('ERR_HOLDFAST_BUSY', `${WAITING_MAX} questions wait for this voter already`);
    this.#waiting++;
    const turn = this.#last.then(() => this.#decide(decide));
    this.#last = turn.then(
      () => {},
      () => {},
    );
    try {
      return await turn;
    } finally {
      this.#waiting--;
    }
  }

  async #decide<Answer>(decide: (state: VoterState) => Vote<Answer>): Promise<Answer> {
    if (this.#failure !== undefined) throw this.#failure;
    const { state, answer } = decide(this.#state);
    if (state === this.#state) return answer;
    try {
      await this.#store.writeVoter(state);
    } catch (cause) {
      this.#failure = new HoldfastError(
        'ERR_HOLDFAST_IO',
        `the voter of register ${this.registerId} could not write its state and is out until it is opened again; check its device or file`,
        { cause },
      );
      throw this.#failure;
    }
    this.#state = state;
    return answer;
  }
}

/** All voters of one peer node: answers the other voters' questions, each once the answer is durable. */
export class RegisterService {
  static readonly #services = new WeakMap<PeerNode, RegisterService>();
  readonly #node: PeerNode;
  readonly #voters = new Map<string, Voter>();

  /** The node's only one. The first time before the node starts. */
  static of(node: PeerNode): RegisterService {
    let service = RegisterService.#services.get(node);
    if (service === undefined) {
      service = new RegisterService(node);
      RegisterService.#services.set(node, service);
    }
    return service;
  }

  private constructor(node: PeerNode) {
    this.#node = node;
    node.handle(lookMethod, async ({ control }, session) => ({
      control: await this.#voter(control, session).look(),
    }));
    node.handle(prepareMethod, async ({ control }, session) => ({
      control: await this.#voterFor(control, session).prepare(control.ballot),
    }));
    node.handle(acceptMethod, async ({ control }, session) => ({
      control: await this.#voterFor(control, session).accept(control.ballot, control.value),
    }));
  }

  /** From now on the voter answers, until it is closed. */
  add(options: VoterOptions): Voter {
    const { registerId, voters, self } = options;
    assert(voters[self] === this.#node.name, 'a voter knows its place');
    assert(voters.length <= VOTERS_MAX && new Set(voters).size === voters.length, 'voters are few, and each is one');
    if (this.#voters.has(registerId))
      throw new HoldfastError(
        'ERR_HOLDFAST_BAD_ARGUMENT',
        `register ${registerId} has a voter in this process already`,
      );
    const voter = new Voter(options, () => {
      if (this.#voters.get(registerId) === voter) this.#voters.delete(registerId);
    });
    this.#voters.set(registerId, voter);
    return voter;
  }

  /** The register's voter, if who asks is another of its voters, with a ballot of its own. */
  #voterFor(question: z.infer<typeof prepareQuestion>, session: PeerSession): Voter {
    const voter = this.#voter(question, session);
    const asker = session.peer.name;
    if (voter.voters[question.ballot.node] === asker) return voter;
    throw new HoldfastError('ERR_HOLDFAST_REFUSED', `${asker} proposes under another's name`);
  }

  /** The register's voter, if who asks is another of its voters. */
  #voter({ register, voters }: z.infer<typeof lookQuestion>, session: PeerSession): Voter {
    const asker = session.peer.name;
    const voter = this.#voters.get(register);
    if (voter === undefined || !voter.voters.includes(asker)) {
      throw new HoldfastError(
        'ERR_HOLDFAST_NO_SUCH_VOLUME',
        `${this.#node.name} is no voter of register ${register} for ${asker}; check the id, the members or units, and the tie-breaker on both`,
      );
    }
    if (voters.join() !== voter.voters.join()) {
      throw new HoldfastError(
        'ERR_HOLDFAST_SETTINGS_DIFFER',
        `${asker} names ${voters.join(', ')} as the voters, and ${this.#node.name} names ${voter.voters.join(', ')}; give both the same members or units, and tie-breaker`,
      );
    }
    return voter;
  }
}
