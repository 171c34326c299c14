/**
 * The service of `holdfast demo-pair`: it takes orders by HTTP, and loses none that it has acknowledged. Two of these
 * processes are a pair; what makes them one is `runProcessPair`. One line of JSON on the standard input says how to reach
 * the unit; "port N" on the standard output says where it listens.
 *
 *   POST /orders {"id":…,"item":…}   201 once the order is safe; 503 from the one that is not the primary
 *   GET  /orders                     all of them, in order
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createInterface } from 'node:readline';
import { systemEnvironment } from '../base/system-environment.ts';
import { connectMemory } from '../checkpoint/connect-memory.ts';
import { pairMemory } from '../checkpoint/pair-memory.ts';
import { runProcessPair } from '../checkpoint/process-pair.ts';

/** How to reach the pair's region. */
export interface PairServiceSettings {
  readonly name: string;
  readonly cluster: string;
  /** Hexadecimal. */
  readonly key: string;
  readonly unit: string;
  readonly unitPort: number;
  readonly region: string;
}

interface Order {
  readonly id: number;
  readonly item: string;
}

const BODY_BYTES_MAX = 64 * 1024;

async function bodyOf(request: IncomingMessage): Promise<Order> {
  let text = '';
  for await (const chunk of request) {
    text += chunk;
    if (text.length > BODY_BYTES_MAX) throw new Error('the order is too long');
  }
  return JSON.parse(text) as Order;
}

function answer(response: ServerResponse, status: number, value: unknown): void {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(value));
}

async function serve({ name, cluster, key, unit, unitPort, region }: PairServiceSettings): Promise<void> {
  const memory = await connectMemory({
    name,
    clusterId: cluster,
    key: Buffer.from(key, 'hex'),
    unit: { name: unit, addresses: [{ kind: 'tcp', host: '127.0.0.1', port: unitPort }] },
  });
  const pair = runProcessPair({
    environment: systemEnvironment,
    memory: pairMemory(memory.client, region),
    initialState: () => new Map<number, Order>(),
    // An order that comes twice (its client did not hear the first answer) is one order.
    apply: (orders, order: Order) => orders.set(order.id, order).size,
    onRole: (role) => console.log(`role ${role}`),
  });
  const handle = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    try {
      if (request.method === 'POST') answer(response, 201, { orders: await pair.update(await bodyOf(request)) });
      else answer(response, 200, await pair.query((orders) => [...orders.values()]));
    } catch (error) {
      answer(response, 503, { error: String(error) });
    }
  };
  const server = createServer((request, response) => void handle(request, response));
  server.listen(0, '127.0.0.1', () => console.log(`port ${(server.address() as { port: number }).port}`));
  pair.closed.catch((error: unknown) => {
    console.error(error);
    process.exit(1);
  });
}

// The demo is gone when its end of the pipe is.
const input = createInterface({ input: process.stdin });
input.once('line', (line) => void serve(JSON.parse(line) as PairServiceSettings));
input.once('close', () => process.exit(0));
