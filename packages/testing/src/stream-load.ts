// SPDX-License-Identifier: Apache-2.0
import { openStream } from "./sse-client.js";
import type { StreamSummary } from "./stream-validator.js";

export interface StreamLoad {
	readonly url: string;
	readonly model: string;
	/** Streams in all. */
	readonly streams: number;
	/** Streams at a time. */
	readonly concurrency: number;
	/** New tokens per stream. */
	readonly maxTokens: number;
	readonly prompt?: (stream: number) => string;
	/** The engine emits random tokens, so the text may hold broken characters. */
	readonly randomTokens?: boolean;
}

/**
 * Runs chat streams, a fixed number at a time, each through the stream validator.
 * @throws the first stream's failure: an HTTP error, a cut connection, a broken rule, or too few tokens.
 */
export async function runStreamLoad(load: StreamLoad): Promise<StreamSummary[]> {
	const summaries: StreamSummary[] = [];
	let next = 0;
	const lane = async (): Promise<void> => {
		while (next < load.streams) {
			const stream = next++;
			const opened = await openStream(
				`${load.url}/v1/chat/completions`,
				{
					model: load.model,
					messages: [{ role: "user", content: load.prompt?.(stream) ?? `Tell me story number ${stream}.` }],
					max_tokens: load.maxTokens,
					temperature: 0,
					ignore_eos: true,
					stream: true,
					stream_options: { include_usage: true },
				},
				{
					kind: "chat",
					includeUsage: true,
					model: load.model,
					allowReplacementCharacter: load.randomTokens ?? false,
				},
			);
			const summary = await opened.finished();
			const tokens = summary.usage?.completion_tokens;
			if (tokens !== load.maxTokens) throw new Error(`stream ${stream}: ${tokens} of ${load.maxTokens} tokens`);
			summaries[stream] = summary;
		}
	};
	await Promise.all(Array.from({ length: load.concurrency }, lane));
	return summaries;
}
