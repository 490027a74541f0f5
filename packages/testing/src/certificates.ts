// SPDX-License-Identifier: Apache-2.0
// Certificates for tests of TLS, made by the openssl program.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Found } from "./found.js";

/** The openssl program, or why there is none. */
export function findOpenssl(): Found {
	return spawnSync("openssl", ["version"]).status === 0
		? { path: "openssl", missing: "" }
		: { path: "", missing: "no openssl on the PATH (Debian: apt-get install openssl)" };
}

/** Paths of a certificate and its key. */
export interface CertificatePaths {
	readonly cert: string;
	readonly key: string;
}

/** An authority of its own folder that signs certificates. */
export class CertificateAuthority {
	readonly folder = mkdtempSync(join(tmpdir(), "dynamo-certs-"));
	/** Path of the authority's certificate. */
	readonly ca: string;
	readonly #key: string;
	#signed = 0;

	/** @throws Error with openssl's words. */
	constructor(name = "test authority") {
		this.ca = join(this.folder, "ca.pem");
		this.#key = join(this.folder, "ca-key.pem");
		openssl([
			...["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"],
			...["-subj", `/CN=${name}`, "-keyout", this.#key, "-out", this.ca],
			...["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"],
		]);
	}

	/**
	 * Signs a certificate for servers and clients.
	 * @param names subjects' alternative names, as openssl writes them.
	 */
	sign(names = "IP:127.0.0.1,DNS:localhost"): CertificatePaths {
		const base = join(this.folder, `signed-${++this.#signed}`);
		const paths = { cert: `${base}.pem`, key: `${base}-key.pem` };
		openssl([
			...["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"],
			...["-subj", "/CN=dynamo-test", "-keyout", paths.key, "-out", `${base}.csr`],
		]);
		writeFileSync(
			`${base}.ext`,
			`subjectAltName=${names}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n`,
		);
		openssl([
			...["x509", "-req", "-in", `${base}.csr`, "-CA", this.ca, "-CAkey", this.#key, "-CAcreateserial"],
			...["-days", "2", "-extfile", `${base}.ext`, "-out", paths.cert],
		]);
		return paths;
	}

	/** Removes the folder. */
	remove(): void {
		rmSync(this.folder, { recursive: true, force: true });
	}
}

function openssl(args: readonly string[]): void {
	const { status, stderr } = spawnSync("openssl", args, { encoding: "utf8" });
	if (status !== 0) throw new Error(`openssl ${args[0]} failed: ${stderr}`);
}
