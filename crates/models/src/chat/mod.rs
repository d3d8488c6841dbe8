//! Chat templates: how a conversation is written as the text that a model was tuned on.
//!
//! Templates are Jinja, run by `minijinja` the way `transformers` runs them (`apply_chat_template`): the same
//! whitespace rules, globals and `tojson`. They come from model files, so they run with limits on recursion and steps.

mod python_json;

use std::borrow::Cow;
use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};

use crate::tokenizer::{TokenizeError, Tokenizer};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What they say.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// What a template gets besides the messages.
#[derive(Debug, Clone)]
pub struct ChatOptions {
    /// Whether the text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Variables of the model's own, such as Qwen3's `enable_thinking`.
    pub variables: BTreeMap<String, serde_json::Value>,
    /// The time that `strftime_now` tells; `None` for the present.
    pub now: Option<jiff::Zoned>,
}

impl Default for ChatOptions {
    /// A generation prompt, no variables, the present.
    fn default() -> Self {
        Self { add_generation_prompt: true, variables: BTreeMap::new(), now: None }
    }
}

/// Why a conversation could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("chat template, line {line}: {reason}")]
    Syntax {
        /// Line of the template, from 1; 0 if unknown.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The template itself refused the conversation (`raise_exception`).
    #[error("the chat template refuses this conversation: {0}")]
    Refused(String),
    /// Running the template failed, or took more than its limits.
    #[error("chat template, line {line}: {reason}")]
    Render {
        /// Line of the template, from 1; 0 if unknown.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The text that the template wrote could not be encoded.
    #[error(transparent)]
    Tokenize(#[from] TokenizeError),
}

/// Template steps that any conversation may take; a step is about one operation.
const BASE_FUEL: u64 = 1_000_000;
/// Further steps for each message.
const FUEL_PER_MESSAGE: u64 = 20_000;
/// How deep macros and blocks may nest.
const RECURSION_LIMIT: usize = 100;
/// Longest template: some 50 times the longest that is in use.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// The template's name in minijinja's environment.
const NAME: &str = "chat";

/// ChatML, for files without a template of their own: what most models without one were tuned on.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}\
    {{ '<|im_start|>assistant\n' }}{% endif %}";

/// A chat template, parsed.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    fallback: bool,
}

impl ChatTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let reason = format!("{} bytes, expected at most {MAX_TEMPLATE_BYTES}", source.len());
            return Err(TemplateError::Syntax { line: 0, reason });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| syntax_error(&e))?);
        environment.set_recursion_limit(RECURSION_LIMIT);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_test("iterable", is_iterable);
        environment.add_function("raise_exception", raise_exception);
        environment
            .add_template_owned(NAME, without_generation_tags(source).into_owned())
            .map_err(|e| syntax_error(&e))?;
        Ok(Self { environment, fallback: false })
    }

    /// ChatML: what to use when a model has no template.
    pub fn chatml() -> Self {
        match Self::new(CHATML) {
            Ok(template) => Self { fallback: true, ..template },
            Err(e) => unreachable!("the template is a constant that the tests render: {e}"),
        }
    }

    /// Whether this is the built-in [`chatml`](Self::chatml) rather than the model's own.
    pub fn is_fallback(&self) -> bool {
        self.fallback
    }

    /// The conversation as text. `bos` and `eos` are the texts of those tokens, which some templates write.
    ///
    /// Encode the text with special tokens parsed and none added: the template writes them all. What users wrote is
    /// then not told apart from the template's own; [`encode`](Self::encode) does that.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] when the template raises an exception, otherwise [`TemplateError::Render`].
    pub fn render(
        &self,
        messages: &[Message],
        bos: &str,
        eos: &str,
        options: &ChatOptions,
    ) -> Result<String, TemplateError> {
        let mut environment = self.environment.clone();
        let fuel_for_messages = FUEL_PER_MESSAGE.saturating_mul(messages.len() as u64);
        environment.set_fuel(Some(BASE_FUEL.saturating_add(fuel_for_messages)));
        let now = options.now.clone().unwrap_or_else(jiff::Zoned::now);
        environment.add_function("strftime_now", move |format: &str| strftime(&now, format));
        let own = Value::from(Serde(&options.variables));
        let standard = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => options.add_generation_prompt,
            bos_token => bos,
            eos_token => eos,
            // Templates ask whether these are none, which something undefined is not.
            tools => Value::from(()),
            documents => Value::from(()),
        };
        let template = environment.get_template(NAME).map_err(|e| render_error(&e))?;
        template.render(context! { ..standard, ..own }).map_err(|e| render_error(&e))
    }

    /// The conversation as tokens. Special tokens that the template writes are special; the same characters in a
    /// message's content are text, so nobody can end a turn, or begin one for somebody else, by writing its marker.
    ///
    /// # Errors
    /// As [`render`](Self::render), and [`TemplateError::Tokenize`].
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<Vec<u32>, TemplateError> {
        let shield = unused_noncharacter(messages);
        let messages: Vec<Message> = messages
            .iter()
            .map(|message| Message {
                role: message.role.clone(),
                content: match shield {
                    Some(shield) => tokenizer.shield(&message.content, shield).into_owned(),
                    None => message.content.clone(),
                },
            })
            .collect();
        let special = tokenizer.special();
        let bos = tokenizer.token_text(special.bos);
        let eos = tokenizer.token_text(special.eos);
        let text = self.render(&messages, &bos, &eos, options)?;
        Ok(tokenizer.encode_shielded(&text, false, true, shield)?)
    }
}

/// A character that Unicode keeps for internal use (U+FDD0 to U+FDEF) and that no message contains.
fn unused_noncharacter(messages: &[Message]) -> Option<char> {
    ('\u{fdd0}'..='\u{fdef}').find(|&c| messages.iter().all(|message| !message.content.contains(c)))
}

/// `{% generation %}` marks the assistant's words for training (an extension of `transformers`); when text is
/// generated it means nothing.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut rewritten = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        rewritten.push_str(before);
        rewritten.push_str("{%");
        rest = tag;
        let Some((inside, after)) = tag.split_once("%}") else {
            break;
        };
        let word = inside.trim_matches(['-', '+']).trim();
        let replacement = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        rewritten.push_str(&inside.replacen(word, replacement, 1));
        rewritten.push_str("%}");
        rest = after;
    }
    rewritten.push_str(rest);
    Cow::Owned(rewritten)
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message)))
}

/// What a template said when it raised an exception.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// As in Jinja: minijinja iterates over `none`, too, and templates ask this of `tools`.
fn is_iterable(value: &Value) -> bool {
    match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Invalid => false,
        ValueKind::String | ValueKind::Undefined => true,
        _ => value.try_iter().is_ok(),
    }
}

fn to_json(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Of `json.dumps`; the text is never escaped here, and the order of keys is the one that was given.
    for ignored in ["ensure_ascii", "sort_keys", "separators"] {
        options.get::<Option<Value>>(ignored)?;
    }
    options.assert_all_used()?;
    python_json::to_string(value, indent).map(Value::from_safe_string)
}

fn strftime(now: &jiff::Zoned, format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, now).map_err(|e| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}"))
    })
}

fn syntax_error(error: &minijinja::Error) -> TemplateError {
    TemplateError::Syntax { line: error.line().unwrap_or(0), reason: reason(error) }
}

fn render_error(error: &minijinja::Error) -> TemplateError {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return TemplateError::Refused(message.clone());
        }
        source = inner.source();
    }
    TemplateError::Render { line: error.line().unwrap_or(0), reason: reason(error) }
}

fn reason(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}
