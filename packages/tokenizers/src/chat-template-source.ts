// SPDX-License-Identifier: Apache-2.0

/** Where a model's chat template may come from. */
export interface ChatTemplateSources {
	/** Parsed tokenizer_config.json: `chat_template` is a text or a list of named ones. */
	tokenizerConfig?: object | undefined;
	/** Text of chat_template.jinja. */
	chatTemplateJinja?: string | undefined;
	/** chat_template.json: parsed, or its text. */
	chatTemplateJson?: object | string | undefined;
}

/**
 * Named chat templates of a model (`default`, often alone, and `tool_use` etc.); empty when it has none.
 * As in Hugging Face transformers, a template in a file of its own replaces the `default` one of
 * tokenizer_config.json: chat_template.jinja first, then chat_template.json.
 */
export function resolveChatTemplates(sources: ChatTemplateSources): Map<string, string> {
	const templates = new Map<string, string>();
	add(templates, sources.tokenizerConfig);
	const json = sources.chatTemplateJson;
	add(templates, typeof json === "string" ? (JSON.parse(json) as object) : json);
	if (sources.chatTemplateJinja !== undefined) templates.set("default", sources.chatTemplateJinja);
	return templates;
}

function add(templates: Map<string, string>, file: object | undefined): void {
	const value = (file as { chat_template?: unknown } | undefined)?.chat_template;
	if (typeof value === "string") {
		templates.set("default", value);
	} else if (Array.isArray(value)) {
		for (const entry of value as Record<string, unknown>[]) {
			if (typeof entry?.name === "string" && typeof entry.template === "string") {
				templates.set(entry.name, entry.template);
			} else {
				// Another spelling in use: one object per name, {"default": "..."}.
				for (const [name, template] of Object.entries(entry ?? {})) {
					if (typeof template === "string") templates.set(name, template);
				}
			}
		}
	} else if (typeof value === "object" && value !== null) {
		for (const [name, template] of Object.entries(value)) {
			if (typeof template === "string") templates.set(name, template);
		}
	}
}
