// SPDX-License-Identifier: Apache-2.0
// The tables of docs/configuration.md, made from the catalogue of environment variables and the commands' flags.
import { COMMANDS, type CommandSpec, type FlagSpec, flagDefault } from "@dynamo-ts/cli/internal";
import { ENV_GROUPS, type EnvVariable, OF_A_FLAG } from "@dynamo-ts/protocols/internal";

type Group = Exclude<keyof typeof ENV_GROUPS, "flags">;

/** Every subcommand's table of flags. */
export async function commandSpecs(): Promise<readonly CommandSpec[]> {
	return Promise.all(Object.values(COMMANDS).map(async (entry) => (await entry.load()).command.spec));
}

/** Variables of a group that stand in for no flag; neighbours with the same meaning are one row. Who reads them is a column where it differs. */
function tableOf(group: Group): string[] {
	const rows: { names: string[]; defaults: string[]; variable: EnvVariable }[] = [];
	for (const [name, variable] of Object.entries(ENV_GROUPS[group]) as [string, EnvVariable | typeof OF_A_FLAG][]) {
		if (variable === OF_A_FLAG) continue;
		const last = rows.at(-1);
		if (last?.variable.meaning === variable.meaning) {
			last.names.push(name);
			last.defaults.push(variable.default);
		} else {
			rows.push({ names: [name], defaults: [variable.default], variable });
		}
	}
	const users = new Set(rows.map(({ variable }) => variable.users));
	const column = users.size > 1;
	return [
		...(column ? [] : [`Read by ${users.has("every process") ? "" : "the "}${[...users][0]}:`, ""]),
		column ? "| variable | default | read by | meaning |" : "| variable | default | meaning |",
		column ? "|---|---|---|---|" : "|---|---|---|",
		...rows.map(({ names, defaults, variable }) => {
			const fallback = defaults.every((text) => text === "") ? "" : defaults.join(", ");
			const user = column ? ` ${variable.users} |` : "";
			return `| ${names.map(code).join(", ")} | ${fallback} |${user} ${variable.meaning} |`;
		}),
	];
}

/** Each variable of a flag with the commands that have it; a row of its own where commands differ in the meaning. */
function flagTable(specs: readonly CommandSpec[]): string[] {
	const rows = new Map<string, { flag: FlagSpec; commands: string[] }>();
	for (const spec of specs) {
		for (const flag of spec.flags) {
			if (flag.env === undefined || flag.status !== undefined) continue;
			const key = JSON.stringify([flag.env, flag.flag, flag.help, flagDefault(flag)]);
			const row = rows.get(key);
			if (row === undefined) rows.set(key, { flag, commands: [spec.name] });
			else row.commands.push(spec.name);
		}
	}
	const sorted = [...rows.values()].sort((a, b) => compare(a.flag.env as string, b.flag.env as string));
	return [
		"| variable | flag | default | commands | meaning |",
		"|---|---|---|---|---|",
		...sorted.map(
			({ flag, commands }) =>
				`| ${code(flag.env as string)} | ${code(`--${flag.flag}`)} | ${flagDefault(flag) ?? ""} | ${commands.join(", ")} | ${cell(flag.help)} |`,
		),
	];
}

/** Variables of flags that are taken without effect, or that Dynamo has and this version has not. */
function idleFlags(specs: readonly CommandSpec[], kind: "ignored" | "missing"): string[] {
	const flags = specs.flatMap(({ flags: all }) => all);
	const working = new Set(flags.filter(({ status }) => status === undefined).map(({ env }) => env));
	const names = new Set<string>();
	for (const { env, status } of flags) if (status?.kind === kind && env && !working.has(env)) names.add(env);
	return [`${[...names].sort(compare).map(code).join(", ")}.`];
}

/**
 * The document with its tables made anew: what is between `<!-- table: … -->` and `<!-- end -->`, the rest is written
 * by hand.
 * @throws Error for a table that there is not, or a group that has none.
 */
export function configurationDocument(text: string, specs: readonly CommandSpec[]): string {
	const open = new Set<string>(Object.keys(ENV_GROUPS));
	const made = text.replace(
		/(<!-- table: ([A-Za-z ]+) -->\n)[\s\S]*?(<!-- end -->)/g,
		(_, begin, what, end) => `${begin}${lines(what).join("\n")}\n${end}`,
	);
	if (open.size > 0) throw new Error(`docs/configuration.md has no table for ${[...open].join(", ")}`);
	return made;

	function lines(what: string): string[] {
		if (what === "ignored flags") return idleFlags(specs, "ignored");
		if (what === "missing flags") return idleFlags(specs, "missing");
		if (!open.delete(what)) throw new Error(`docs/configuration.md asks for a table "${what}" twice, or there is none`);
		return what === "flags" ? flagTable(specs) : tableOf(what as Group);
	}
}

function compare(a: string, b: string): number {
	return a < b ? -1 : a > b ? 1 : 0;
}

function code(text: string): string {
	return `\`${text}\``;
}

/** Text of a help as a cell: bars would end it, and angle brackets be taken for HTML. */
function cell(text: string): string {
	return text.replaceAll("|", "\\|").replaceAll("<", "&lt;");
}
