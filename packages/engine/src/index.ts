// SPDX-License-Identifier: Apache-2.0
// The public door of the engine.

export type {
	Engine,
	EngineError,
	EngineErrorCode,
	EngineInfo,
	EngineOutput,
	EngineRequest,
	EngineStats,
	FinishReason,
	HeldKv,
	KvFetch,
	KvLayout,
	KvPort,
	LengthSummary,
	PromptLogprob,
	SamplingOptions,
	StepReport,
	StopOptions,
	TopLogprob,
} from "./engine.js";
export type { SpeculativeOptions } from "./engine-core.js";
export { createEngineThread, type EngineThreadOptions } from "./engine-thread.js";
export { KvEventTap } from "./kv-event-tap.js";
export { createMockEngine, type MockEngineOptions } from "./mock/mock-engine.js";
