// SPDX-License-Identifier: Apache-2.0
import type { CommandSpec, FlagSpec } from "./flag-spec.js";

const INDENT = " ".repeat(24);

/** The text of `dynamo COMMAND --help`, each flag with its variable and default as Dynamo prints them. */
export function helpText(command: CommandSpec, width = 100): string {
	const positionals = command.positionals ?? [];
	const lines = [
		`usage: dynamo ${[command.name, ...positionals.map((p) => (p.required ? p.name : `[${p.name}]`)), "[flags]"].join(" ")}`,
		"",
		command.summary,
	];
	if (positionals.length > 0) {
		lines.push("", "arguments:");
		for (const positional of positionals) lines.push(...entry(positional.name, [positional.help], width));
	}
	const groups = new Map<string, FlagSpec[]>([["options", []]]);
	for (const flag of command.flags) {
		if (flag.status?.kind === "missing") continue;
		const group = flag.group ?? "options";
		const members = groups.get(group);
		if (members === undefined) groups.set(group, [flag]);
		else members.push(flag);
	}
	for (const [group, flags] of groups) {
		lines.push("", `${group}:`);
		if (group === "options") {
			lines.push(...entry("-h, --help", ["Show this help and exit."], width));
			lines.push(...entry("--version", ["Show the version and exit."], width));
		}
		for (const flag of flags) lines.push(...flagEntry(flag, width));
	}
	const missing = command.flags.filter((flag) => flag.status?.kind === "missing");
	if (missing.length > 0) {
		lines.push("", "flags of Dynamo that this version does not have yet:");
		lines.push(...wrap(missing.map((flag) => `--${flag.flag}`).join(" "), width - 2).map((line) => `  ${line}`));
	}
	if (command.epilog !== undefined) lines.push("", ...command.epilog);
	return `${lines.join("\n")}\n`;
}

function flagEntry(flag: FlagSpec, width: number): string[] {
	const names = [flag.flag, ...(flag.aliases ?? [])].flatMap((name) =>
		flag.type === "boolean" ? [`--${name}`, `--no-${name}`] : [`--${name} ${valueName(flag)}`],
	);
	const head = [...(flag.short === undefined ? [] : [`-${flag.short}`]), ...names].join(", ");
	const text = flag.status === undefined ? flag.help : `${flag.help} Accepted without effect: ${flag.status.why}.`;
	const origin = [
		...(flag.env === undefined ? [] : [`env var: ${flag.env}`]),
		`default: ${flagDefault(flag) ?? "None"}`,
	].join(" | ");
	return entry(head, [text, origin], width);
}

/** A flag's default as help shows it; undefined: none. */
export function flagDefault(flag: FlagSpec): string | undefined {
	if (flag.defaultText !== undefined) return flag.defaultText;
	if (flag.type === "boolean") return flag.default === true ? "True" : "False";
	return flag.default === undefined ? undefined : String(flag.default);
}

function valueName(flag: FlagSpec): string {
	if (flag.type === "string" && flag.choices !== undefined) return `{${flag.choices.join(",")}}`;
	return flag.metavar ?? flag.flag.replaceAll("-", "_").toUpperCase();
}

function entry(head: string, paragraphs: readonly string[], width: number): string[] {
	const body = paragraphs.flatMap((text) => wrap(text, width - INDENT.length)).map((line) => INDENT + line);
	const start = `  ${head}`;
	if (start.length < INDENT.length - 1 && body.length > 0) {
		return [start.padEnd(INDENT.length) + body[0]!.slice(INDENT.length), ...body.slice(1)];
	}
	return [start, ...body];
}

/** Breaks a text into lines of at most `width` characters at spaces; longer words stay whole. */
export function wrap(text: string, width: number): string[] {
	const lines: string[] = [];
	let line = "";
	for (const word of text.split(/\s+/)) {
		if (line !== "" && line.length + 1 + word.length > width) {
			lines.push(line);
			line = word;
		} else {
			line = line === "" ? word : `${line} ${word}`;
		}
	}
	if (line !== "") lines.push(line);
	return lines;
}
