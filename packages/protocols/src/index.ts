// SPDX-License-Identifier: Apache-2.0
export type { Annotated, ResponseFrame } from "./annotated.js";
export { blake3Hex, checkedFile, verifyChecksum } from "./card/checksum.js";
export { mdcsum } from "./card/mdcsum.js";
export { formatModelType, MODEL_TYPES, type ModelType, parseModelType } from "./card/model-type.js";
export { effectiveContextLength, parseModelCard } from "./card/parse-card.js";
export { isSlug, slugify } from "./card/slugify.js";
export {
	BUCKETS,
	type Bucket,
	type DeviceType,
	type DiscoveryRecord,
	type EndpointId,
	type EndpointRecord,
	type EventChannelRecord,
	type EventScope,
	type EventSourceRecord,
	type EventTransport,
	type ModelRecord,
	type RequestPlaneCodec,
	type TransportAddress,
} from "./discovery-records.js";
export {
	BACKEND_ERRORS,
	type BackendError,
	DynamoError,
	type DynamoErrorOptions,
	ERROR_CLASSES,
	type ErrorClass,
	isDynamoError,
	type WireError,
	type WireErrorType,
} from "./dynamo-error.js";
export { ENV, type EnvName } from "./env-names.js";
export {
	CLASS_OF_REASON,
	type ErrorReason,
	errorReason,
	FAILURE_CLASSES,
	type FailureClass,
	failureClass,
	isInstanceFault,
	isMigratable,
	PUBLIC_SENTENCES,
	publicMessage,
} from "./errors/error-catalogue.js";
export { fromWireError, toWireError } from "./errors/wire-error.js";
export {
	ACK_OVERLOADED_PREFIX,
	ACK_UNAVAILABLE_PREFIX,
	AckDecoder,
	ackMeaning,
	encodeAck,
} from "./frames/ack-frame.js";
export { decodeBody, encodeBody } from "./frames/body-codec.js";
export { encodeControl, parseControl, type RequestControl } from "./frames/control-message.js";
export {
	type DecodedRequestFrame,
	encodeRequestFrame,
	type RequestFrame,
	RequestFrameDecoder,
} from "./frames/request-frame.js";
export { COMPLETE_FINAL_FRAME, decodeResponseFrame, encodeResponseFrame } from "./frames/response-frame.js";
export {
	type ControlWord,
	encodeHandshake,
	encodePrologueError,
	KILL_FRAME,
	PROLOGUE_OK_FRAME,
	type Prologue,
	parseControlWord,
	parseHandshake,
	parsePrologue,
	SENTINEL_FRAME,
	STOP_FRAME,
} from "./frames/response-stream.js";
export { encodeTwoPart, type OnTwoPart, splitTwoPart, TwoPartDecoder } from "./frames/two-part-frame.js";
export { FrameTooLargeError, MAX_FRAME_BYTES } from "./frames/wire-constants.js";
export { isU64, normaliseId, parseJson, stringifyJson } from "./json.js";
export {
	bucketOfKey,
	endpointPath,
	fileNameOfKey,
	idHex,
	keyOfFileName,
	type ParsedKey,
	parseIdHex,
	parseKey,
	recordKey,
	splitTcpAddress,
} from "./keys.js";
export type {
	CompletionTokensDetails,
	CompletionUsage,
	LLMEngineOutput,
	PromptTokensDetails,
	TopLogprob,
	WireFinishReason,
} from "./llm-engine-output.js";
export { LABELS } from "./metric-names.js";
export { BUCKET_RANGES, type BucketRange, computedBuckets } from "./metrics/computed-buckets.js";
export { fullMetricName, METRICS } from "./metrics/metric-catalogue.js";
export type { MetricFamily } from "./metrics/metric-family.js";
export type { CheckedFile, ModelDeploymentCard, ModelInput, ModelRuntimeConfig, WorkerType } from "./model-card.js";
export { HttpError, type HttpErrorBody, type HttpErrorOptions, SSE_DONE, sseErrorEvent } from "./openai/http-error.js";
export { type ParseOptions, parseChatCompletionRequest, parseCompletionRequest } from "./openai/parse-requests.js";
export type {
	AgentHints,
	ChatCompletionRequest,
	ChatMessage,
	CommonRequestFields,
	CompletionRequest,
	ContentPart,
	NvExt,
	RequestToolCall,
	ResponseFormat,
	StreamOptions,
	ToolChoice,
	ToolDefinition,
} from "./openai/request-types.js";
export type {
	ChatChunkChoice,
	ChatCompletionChunk,
	ChatCompletionMessage,
	ChatCompletionResponse,
	ChatDelta,
	ChatLogprobs,
	ChatTokenLogprob,
	CompletionChoice,
	CompletionLogprobs,
	CompletionResponse,
	FinishReason,
	ModelList,
	ModelObject,
	ToolCall,
	ToolCallDelta,
} from "./openai/response-types.js";
export { guidedConstraints, MAX_REQUESTED_TOKENS, MAX_STOPS } from "./openai/validation.js";
export type {
	BootstrapInfo,
	GuidedDecoding,
	OutputOptions,
	PrefillResult,
	PreprocessedRequest,
	RoutingHints,
	SamplingOptions,
	StopConditions,
} from "./preprocessed-request.js";
export {
	parseDiscoveryRecord,
	parseEndpointRecord,
	parseEventChannelRecord,
	parseEventSourceRecord,
	parseModelRecord,
	parseStoredRecord,
} from "./records.js";
