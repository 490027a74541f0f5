// SPDX-License-Identifier: Apache-2.0

/** Environment variables, each spelt once. Meanings and defaults stand with the flags that read them. */
export const ENV = {
	DYN_LOG: "DYN_LOG",
	DYN_LOGGING_JSONL: "DYN_LOGGING_JSONL",
	DYN_NAMESPACE: "DYN_NAMESPACE",
	DYN_DISCOVERY_BACKEND: "DYN_DISCOVERY_BACKEND",
	DYN_FILE_KV: "DYN_FILE_KV",
	DYN_REQUEST_PLANE: "DYN_REQUEST_PLANE",
	DYN_SYSTEM_HOST: "DYN_SYSTEM_HOST",
	DYN_SYSTEM_PORT: "DYN_SYSTEM_PORT",
	DYN_HTTP_HOST: "DYN_HTTP_HOST",
	DYN_HTTP_PORT: "DYN_HTTP_PORT",
} as const;
export type EnvName = keyof typeof ENV;
