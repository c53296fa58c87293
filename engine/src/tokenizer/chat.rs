//! A model's way of writing a conversation: the Jinja template that it ships, rendered as transformers does.

use super::MAX_TEXT_BYTES;
use super::error::{Error, invalid};
use super::files::{CONFIG_LIMIT, Side, read};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value, context};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Template instructions executed at most for one rendering; a long conversation takes some ten thousand.
const FUEL: u64 = 20_000_000;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks, in the template's words: most know `system`, `user` and `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    file: PathBuf,
    environment: Environment<'static>,
    /// Special tokens by name (`bos_token` …), as far as the model has them.
    tokens: Value,
}

impl ChatTemplate {
    /// Reads the template of the model in `dir`: chat_template.jinja, else `chat_template` of
    /// tokenizer_config.json (of several, the one named `default`). `None` where the model has none.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::TooLarge`], or [`Error::Invalid`] for a template that does not parse.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, Error> {
        let side = Side::read(dir)?;
        let own_file = dir.join("chat_template.jinja");
        let (file, source) = match (read(&own_file, CONFIG_LIMIT)?, in_config(&side)?) {
            (Some(source), _) => (own_file, source),
            (None, Some(source)) => (side.config_file.clone(), source),
            (None, None) => return Ok(None),
        };
        let environment = environment().and_then(|mut environment| {
            environment.add_template_owned("chat", without_generation_marks(&source))?;
            Ok(environment)
        });
        let wrong = |e: minijinja::Error| {
            invalid(&file, "chat_template", format!("{}; accepted: a Jinja template", explain(&e)))
        };
        let environment = environment.map_err(wrong)?;
        let mut tokens = BTreeMap::new();
        for name in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            tokens.extend(side.named(name)?.token().map(|token| (name, token)));
        }
        Ok(Some(ChatTemplate { file, environment, tokens: Value::from(tokens) }))
    }

    /// Writes the conversation as the model was trained to read it; with `add_generation_prompt` up to where
    /// the model's answer begins. Encode the result without adding special tokens: what is needed is in it.
    ///
    /// # Errors
    /// [`Error::Render`] where the template refuses the messages, fails, or runs without end.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, Error> {
        let failed = |e: minijinja::Error| Error::Render { file: self.file.clone(), problem: explain(&e) };
        let template = self.environment.get_template("chat").map_err(failed)?;
        // The last two are named but empty, as in transformers: templates ask `tools is not none`.
        let message = |m: &Message| context! { role => m.role.as_str(), content => m.content.as_str() };
        let messages: Vec<Value> = messages.iter().map(message).collect();
        let context =
            context! { messages, add_generation_prompt, tools => (), documents => (), ..self.tokens.clone() };
        let mut out = Capped(Vec::new());
        template.render_captured_to(context, &mut out).map_err(failed)?;
        // A template writes text, so this loses nothing.
        Ok(String::from_utf8_lossy(&out.0).into_owned())
    }
}

/// An error with what caused it, which the template engine keeps apart.
fn explain(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// `chat_template` of tokenizer_config.json: a string, or a list of named ones.
fn in_config(side: &Side) -> Result<Option<String>, Error> {
    let Some(value) = side.get("chat_template") else { return Ok(None) };
    let named = |name: &str| {
        let template = value.as_array()?.iter().find(|entry| entry["name"] == name)?;
        template["template"].as_str()
    };
    let source = value.as_str().or_else(|| named("default")).map(str::to_owned);
    let problem = "accepted: a string, or a list of {name, template} with one named \"default\"";
    source.map(Some).ok_or_else(|| invalid(&side.config_file, "chat_template", problem))
}

/// `{% generation %}` marks answers for training and writes nothing; a condition that always holds keeps its
/// place and its white-space control.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(end) = rest.find("{%").map(|at| at + 2) {
        let (before, tag) = rest.split_at(end);
        out.push_str(before);
        let body = tag.trim_start_matches(['-', '+']).trim_start();
        out.push_str(&tag[..tag.len() - body.len()]);
        rest = body;
        for (mark, instead) in [("generation", "if true"), ("endgeneration", "endif")] {
            let after = body
                .strip_prefix(mark)
                .filter(|after| after.trim_start().trim_start_matches(['-', '+']).starts_with("%}"));
            if let Some(after) = after {
                out.push_str(instead);
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// Jinja as transformers sets it up for chat templates.
fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_fuel(Some(FUEL));
    // Conversations are not HTML, whatever the template's name.
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| {
        Err::<Value, _>(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| {
        let now = jiff::Zoned::now();
        jiff::fmt::strtime::format(format, &now)
            .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))
    });
    Ok(environment)
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`: unlike Jinja's own filter it leaves `<`
/// and `&` alone.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // transformers takes these too; the defaults are what templates ask for.
    let _: (Option<bool>, Option<Value>) = (options.get("ensure_ascii")?, options.get("separators")?);
    options.assert_all_used()?;
    let mut out = Capped(Vec::new());
    let written = match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)),
    };
    written.map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Value::from_safe_string(String::from_utf8_lossy(&out.0).into_owned()))
}

/// Python's separators: `, ` and `: `.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Takes at most [`MAX_TEXT_BYTES`].
struct Capped(Vec<u8>);

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_TEXT_BYTES {
            return Err(io::Error::other(format!("more than {MAX_TEXT_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use serde_json::json;
    use tempfile::TempDir;

    fn dir(files: &[(&str, String)]) -> TempDir {
        let dir = TempDir::new().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn template(config: &serde_json::Value) -> ChatTemplate {
        let folder = dir(&[("tokenizer_config.json", config.to_string())]);
        ChatTemplate::from_dir(folder.path()).unwrap().unwrap()
    }

    fn turns() -> Vec<Message> {
        vec![
            Message::new("system", "Be brief."),
            Message::new("user", " Hi <b>! "),
            Message::new("assistant", "Yes?"),
        ]
    }

    #[test]
    fn chat_templates_render_as_in_transformers() {
        let chatml = "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0]['content'] \
                      + '<|im_end|>\\n' }}\n{%- endif %}\n{%- for message in messages[1:] %}\n    \
                      {{- '<|im_start|>' + message.role + '\\n' + message.content.strip() + '<|im_end|>' + '\\n' }}\n\
                      {%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";
        let text = template(&json!({"chat_template": chatml})).render(&turns()[..2], true).unwrap();
        assert_eq!(
            text,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b>!<|im_end|>\n<|im_start|>assistant\n"
        );

        let several = json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template":
            "{{ bos_token }}{% for m in messages %}\n    {% if loop.index0 == 2 %}\n{% break %}\n    {% endif %}\n\
             {% generation %}{{ m['role'].upper() }}:{{ m.content | trim | tojson }}{% endgeneration %}\n;\n{% endfor %}\n\
             {{ tools is none }}{{ eos_token is defined }}"}]);
        let text = template(&json!({"chat_template": several, "bos_token": {"content": "<s>"}}))
            .render(&turns(), false);
        assert_eq!(text.unwrap(), "<s>SYSTEM:\"Be brief.\";\nUSER:\"Hi <b>!\";\nTrueFalse");

        let dated = template(
            &json!({"chat_template": "{{ strftime_now('%d %b %Y') | length }} {{ {'a': [1, 2]} | tojson }}"}),
        );
        assert_eq!(dated.render(&[], false).unwrap(), "11 {\"a\": [1, 2]}");
    }

    #[test]
    fn a_template_file_goes_before_the_configuration() {
        let folder = dir(&[
            ("tokenizer_config.json", json!({"chat_template": "config"}).to_string()),
            ("chat_template.jinja", "file".to_owned()),
        ]);
        assert_eq!(
            ChatTemplate::from_dir(folder.path()).unwrap().unwrap().render(&[], false).unwrap(),
            "file"
        );
        assert!(ChatTemplate::from_dir(dir(&[]).path()).unwrap().is_none());
    }

    #[test]
    fn bad_templates_are_answered() {
        let folder = dir(&[("chat_template.jinja", "{% for %}".to_owned())]);
        let message = ChatTemplate::from_dir(folder.path()).unwrap_err().to_string();
        assert!(message.contains("chat_template.jinja"), "{message}");
        let folder = dir(&[("tokenizer_config.json", json!({"chat_template": [{"name": "x"}]}).to_string())]);
        let message = ChatTemplate::from_dir(folder.path()).unwrap_err().to_string();
        assert!(message.contains("default"), "{message}");
        for (source, says) in [
            ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
            ("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}", "fuel"),
            ("{{ 'x' * 90000000 }}", "bytes"),
            ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
            ("{{ messages.a.b }}", "undefined"),
            ("{{ strftime_now('%!') }}", "strftime_now"),
        ] {
            let message =
                template(&json!({"chat_template": source})).render(&turns(), true).unwrap_err().to_string();
            assert!(
                message.contains(says) && message.contains("tokenizer_config.json"),
                "{source}: {message}"
            );
        }
    }
}
