/**
 * The text of a configuration: JSON with comments and trailing commas, and for every value the line and column where it
 * stands, so that each error points at the place to mend.
 */
import {
  findNodeAtLocation,
  getNodeValue,
  type Node,
  type ParseError,
  parseTree,
  printParseErrorCode,
} from 'jsonc-parser';
import { HoldfastError } from '../base/errors.ts';

export type ConfigPath = readonly (string | number)[];

export interface ConfigProblem {
  /** Where the value stands. A path that does not exist points at its nearest parent that does. */
  readonly path: ConfigPath;
  /** Points at the name of the property instead of its value. */
  readonly atName?: boolean;
  /** What is wrong; what to do. */
  readonly message: string;
}

const TEXT_BYTES_MAX = 1024 * 1024;
const PROBLEMS_SHOWN_MAX = 20;

export class ConfigText {
  /** What the text is called in messages: its path. */
  readonly source: string;
  readonly #text: string;
  readonly #root: Node;

  /** Throws ERR_HOLDFAST_CONFIG if the text is not JSON with comments, or names a setting twice. */
  constructor(source: string, text: string) {
    this.source = source;
    this.#text = text.replace(/^\uFEFF/, '');
    if (this.#text.length > TEXT_BYTES_MAX)
      throw new HoldfastError(
        'ERR_HOLDFAST_CONFIG',
        `${source}: has more than ${TEXT_BYTES_MAX} characters; is it really a configuration?`,
      );
    const errors: ParseError[] = [];
    const root = this.#parse(errors);
    const first = errors[0];
    if (!root) this.#failAt(0, 'is empty; docs/config.md has a sample to start from');
    if (first) this.#failAt(first.offset, syntaxMessage(first));
    this.#root = root;
    const doubles = duplicates(root, []);
    if (doubles.length > 0) this.fail(doubles);
  }

  #parse(errors: ParseError[]): Node | undefined {
    try {
      return parseTree(this.#text, errors, { allowTrailingComma: true });
    } catch (error) {
      // The parser recurses: brackets nested tens of thousands deep end its stack.
      throw new HoldfastError('ERR_HOLDFAST_CONFIG', `${this.source}: is nested too deep to be a configuration`, {
        cause: error,
      });
    }
  }

  get value(): unknown {
    return getNodeValue(this.#root);
  }

  /** Throws ERR_HOLDFAST_CONFIG with one line for each problem: file, line, column, path, what is wrong, the mend. */
  fail(problems: readonly ConfigProblem[]): never {
    const lines = problems.slice(0, PROBLEMS_SHOWN_MAX).map((problem) => this.#line(problem));
    if (problems.length > lines.length) lines.push(`… and ${problems.length - lines.length} more`);
    throw new HoldfastError('ERR_HOLDFAST_CONFIG', lines.join('\n'));
  }

  #line(problem: ConfigProblem): string {
    const path = formatPath(problem.path);
    return `${this.source}:${this.#position(this.#offsetOf(problem))}: ${path ? `${path}: ` : ''}${problem.message}`;
  }

  #offsetOf(problem: ConfigProblem): number {
    for (let length = problem.path.length; length > 0; length--) {
      const node = findNodeAtLocation(this.#root, [...problem.path.slice(0, length)]);
      if (!node) continue;
      const named = problem.atName && length === problem.path.length && node.parent?.type === 'property';
      return named ? node.parent!.offset : node.offset;
    }
    return this.#root.offset;
  }

  #position(offset: number): string {
    const before = this.#text.slice(0, offset).split('\n');
    return `${before.length}:${before.at(-1)!.length + 1}`;
  }

  #failAt(offset: number, message: string): never {
    throw new HoldfastError('ERR_HOLDFAST_CONFIG', `${this.source}:${this.#position(offset)}: ${message}`);
  }
}

/** `volumes[0].members[1].device`. */
export function formatPath(path: ConfigPath): string {
  return path
    .map((step, index) => (typeof step === 'number' ? `[${step}]` : `${index > 0 ? '.' : ''}${step}`))
    .join('');
}

const SYNTAX_MENDS: Readonly<Record<string, string>> = {
  CommaExpected: 'a comma is missing before this',
  ColonExpected: 'a colon is missing between the name and its value',
  ValueExpected: 'a value is missing here',
  PropertyNameExpected: 'the name of a setting is missing here; names stand in double quotes',
  CloseBraceExpected: 'a closing brace } is missing',
  CloseBracketExpected: 'a closing bracket ] is missing',
  EndOfFileExpected: 'something stands behind the end of the configuration; remove it',
  InvalidSymbol: 'this is neither a string, a number, true, false nor null; strings stand in double quotes',
  InvalidCommentToken: 'this comment is not one; write // or /* … */',
  UnexpectedEndOfString: 'the string does not end on its line; close it with a double quote',
  UnexpectedEndOfComment: 'the comment does not end; close it with */',
  InvalidEscapeCharacter: 'this escape is not one of JSON; write a backslash as \\\\',
  InvalidCharacter: 'this character is not allowed in a string; escape it',
};

function syntaxMessage(error: ParseError): string {
  const name = printParseErrorCode(error.error);
  return SYNTAX_MENDS[name] ?? `is not JSON here (${name})`;
}

/** The parser lets the last of two equal names win, which hides a mistake. */
function duplicates(node: Node, path: ConfigPath): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const seen = new Set<string>();
  for (const [index, child] of (node.children ?? []).entries()) {
    const [nameNode, valueNode] = node.type === 'object' ? (child.children ?? []) : [undefined, child];
    const step = nameNode ? (nameNode.value as string) : index;
    const here = [...path, step];
    if (typeof step === 'string') {
      if (seen.has(step) || step === '__proto__')
        problems.push({ path: here, atName: true, message: `"${step}" stands here twice; keep one` });
      seen.add(step);
    }
    if (valueNode) problems.push(...duplicates(valueNode, here));
  }
  return problems;
}
