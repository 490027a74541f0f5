// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { BACKEND_ERRORS, DynamoError, ERROR_CLASSES, type ErrorClass, isDynamoError } from "../dynamo-error.js";
import { decodeResponseFrame } from "../frames/response-frame.js";
import { parsePrologue } from "../frames/response-stream.js";
import { TwoPartDecoder } from "../frames/two-part-frame.js";
import { fixture } from "../testing/fixtures.js";
import {
	BACKEND_ERROR_FACTS,
	CLASS_OF_REASON,
	errorReason,
	FAILURE_CLASSES,
	failureClass,
	instanceVerdict,
	isInstanceFault,
	isMigratable,
	PUBLIC_SENTENCES,
	publicMessage,
	REASON_OF_ERROR_CLASS,
} from "./error-catalogue.js";
import { fromWireError, toWireError } from "./wire-error.js";

describe("the catalogue", () => {
	it("has a fixed number of entries: a new one must be thought about here", () => {
		expect(ERROR_CLASSES).toHaveLength(24);
		expect(BACKEND_ERRORS).toHaveLength(9);
		expect(FAILURE_CLASSES).toHaveLength(15);
		expect(Object.keys(CLASS_OF_REASON)).toHaveLength(30);
		expect(Object.keys(PUBLIC_SENTENCES)).toHaveLength(FAILURE_CLASSES.length);
		expect(Object.keys(REASON_OF_ERROR_CLASS)).toHaveLength(ERROR_CLASSES.length);
		expect(Object.keys(BACKEND_ERROR_FACTS)).toHaveLength(BACKEND_ERRORS.length);
	});

	it("has public sentences that tell nothing of the inside", () => {
		expect(Object.entries(PUBLIC_SENTENCES)).toMatchObject(FAILURE_CLASSES.map((name) => [name, expect.any(String)]));
		for (const sentence of Object.values(PUBLIC_SENTENCES)) expect(sentence).toMatch(/^[A-Z][a-z ]+$/);
	});

	it.each([
		["InvalidArgument", "InvalidRequest", "request.invalid_argument"],
		["ResourceExhausted", "CapacityExhausted", "capacity.pool_exhausted"],
		["WorkerOverloaded", "CapacityExhausted", "capacity.worker_overloaded"],
		["CannotConnect", "Unavailable", "transport.cannot_connect"],
		["Disconnected", "Unavailable", "transport.disconnected"],
		["ResponseTimeout", "DeadlineExceeded", "backend.response_timeout"],
		["NotImplemented", "NotImplemented", "runtime.not_implemented"],
		["UnsupportedMedia", "UnsupportedMedia", "request.unsupported_media"],
		["Unknown", "Internal", "runtime.unclassified"],
	] as const)("counts %s as %s/%s", (errorClass, failure, reason) => {
		const error = new DynamoError(errorClass, "x");
		expect([failureClass(error), errorReason(error)]).toEqual([failure, reason]);
	});

	it("counts an unknown reason as the class's own", () => {
		expect(errorReason(new DynamoError("Cancelled", "x", { reason: "my.own" }))).toBe("request.cancelled");
	});
});

describe("classification", () => {
	const migratable: ErrorClass[] = [
		"CannotConnect",
		"Disconnected",
		"ConnectionTimeout",
		"WorkerOverloaded",
		"Unavailable",
		"WorkerUnavailable",
	];
	it.each(ERROR_CLASSES)("of %s", (errorClass) => {
		const error = new DynamoError(errorClass, "x");
		expect(isMigratable(error)).toBe(migratable.includes(errorClass));
		const fault =
			errorClass === "ResponseTimeout" || (migratable.includes(errorClass) && errorClass !== "WorkerOverloaded");
		expect(isInstanceFault(error)).toBe(fault);
	});

	it.each([
		["a bad request", "InvalidArgument", "healthy"],
		["one that is not allowed", "PermissionDenied", "healthy"],
		["what is not there", "NotFound", "healthy"],
		["too large", "PayloadTooLarge", "healthy"],
		["the client left", "Cancelled", "healthy"],
		["not implemented", "NotImplemented", "healthy"],
		["429", "RateLimited", "neutral"],
		["529", "WorkerOverloaded", "neutral"],
		["529 of another kind", "ResourceExhausted", "neutral"],
		["500", "Internal", "failure"],
		["500 without a class", "Unknown", "failure"],
		["an answer that cannot be read", "BackendProtocol", "failure"],
		["a deadline of the request", "DeadlineExceeded", "failure"],
		["silence", "ResponseTimeout", "fault"],
		["no connection", "CannotConnect", "fault"],
		["a lost stream", "Disconnected", "fault"],
		["no acknowledgement", "ConnectionTimeout", "fault"],
	] as const)("what %s says about an instance: %s is %s", (_name, errorClass, verdict) => {
		expect(instanceVerdict(new DynamoError(errorClass, "x"))).toBe(verdict);
	});

	it.each(BACKEND_ERRORS)("of the backend's %s", (name) => {
		const error = fromWireError({ error_type: { Backend: name }, message: "x" });
		const expected = ["EngineShutdown", "StreamIncomplete", "Disconnected", "CannotConnect", "ConnectionTimeout"];
		expect(isMigratable(error)).toBe(expected.includes(name));
	});
});

describe("the wire form", () => {
	const recorded = (name: string): { header: Buffer; body: Buffer }[] => {
		const frames: { header: Buffer; body: Buffer }[] = [];
		new TwoPartDecoder().push(fixture(`wire/${name}.bin`), (header, body) => frames.push({ header, body }));
		return frames;
	};
	const itemError = (name: string): unknown => {
		const frame = decodeResponseFrame(recorded(name)[2]?.body as Buffer, "msgpack");
		return frame.complete_final ? undefined : frame.data.error;
	};

	it.each(["client-tcp-error-item.response", "client-tcp-dp9.response"])("of %s goes both ways", (name) => {
		const wire = itemError(name);
		const error = fromWireError(wire);
		expect(error.errorClass).toBe("InvalidArgument");
		expect(JSON.stringify(toWireError(error))).toBe(JSON.stringify(wire));
	});

	it("of a recorded prologue goes both ways", () => {
		const prologue = parsePrologue(recorded("client-prologue-error.response")[1]?.header as Buffer);
		expect(prologue.error).toBe("Generate Error: disaggregated mocker requires a handoff ID");
		const error = fromWireError(prologue.typedError);
		expect(failureClass(error)).toBe("Internal");
		expect(toWireError(error)).toEqual(prologue.typedError);
		expect(publicMessage(error)).toBe("Internal server error");
	});

	it.each(ERROR_CLASSES)("of %s comes back", (errorClass) => {
		const error = new DynamoError(errorClass, "inside", { publicMessage: "outside", code: "c", param: "p" });
		const back = fromWireError(JSON.parse(JSON.stringify(toWireError(error))));
		expect(back).toMatchObject({ errorClass, message: "inside", publicMessage: "outside", code: "c", param: "p" });
		expect(errorReason(back)).toBe(errorReason(error));
	});

	it.each(BACKEND_ERRORS)("of the backend's %s comes back", (name) => {
		const error = fromWireError({ error_type: { Backend: name }, message: "m" });
		const wire = toWireError(error);
		// Two of them are what a class of their own says as well.
		const asClass = { ResponseTimeout: "ResponseTimeout", Unknown: "BackendProtocol" }[name as string];
		expect(wire.error_type).toEqual(asClass ?? { Backend: name });
		expect(fromWireError(wire)).toMatchObject({ errorClass: error.errorClass, reason: error.reason });
		expect(CLASS_OF_REASON[wire.reason as keyof typeof CLASS_OF_REASON]).toBe(wire.class);
	});

	it("of something else thrown is Internal", () => {
		expect(toWireError(new TypeError("boom"))).toMatchObject({
			error_type: "Internal",
			class: "Internal",
			message: "boom",
		});
		expect(toWireError("text")).toMatchObject({ error_type: "Internal", message: "text" });
	});

	it.each<[unknown, ErrorClass]>([
		[{ error_type: "InvalidArgument", message: "m" }, "InvalidArgument"],
		[{ error_type: { Backend: "Nonsense" }, message: "m" }, "BackendProtocol"],
		[{ error_type: "Nonsense", message: "m" }, "Unknown"],
		[{ error_type: "InvalidArgument", class: "InvalidRequest", reason: "made.up", message: "m" }, "Internal"],
		[{ error_type: "InvalidArgument", class: "Internal", reason: "request.invalid", message: "m" }, "Internal"],
		[{ error_type: "Unknown", class: "NotFound", reason: "request.not_found", message: "m" }, "NotFound"],
		[{ message: "m" }, "Unknown"],
		[{ error_type: 5 }, "Unknown"],
		[null, "Internal"],
		["text", "Internal"],
	])("%j reads as %s", (wire, errorClass) => {
		const error = fromWireError(wire);
		expect(isDynamoError(error)).toBe(true);
		expect(error.errorClass).toBe(errorClass);
	});
});
