// SPDX-License-Identifier: Apache-2.0
export * from "./index.js";
export * from "./message-content.js";
export * from "./token-decoder.js";
export * from "./utf8-assembler.js";
