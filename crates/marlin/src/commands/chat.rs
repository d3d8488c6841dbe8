//! `marlin chat`: a conversation at the terminal.

mod conversation;
mod slash;

use std::path::PathBuf;

use metal_marlin::pull::Cache;
use metal_marlin::{GenerateOptions, Session, StopReason};
use rustyline::config::Builder;
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;

use crate::ceilings;
use crate::error::CliError;
use crate::interrupt::Interrupt;
use crate::model;
use crate::options::{ContextOptions, GenerationOptions, ModelOptions};
use crate::output::{AnswerWriter, bytes, note};
use crate::totals::Totals;

use conversation::Conversation;
use slash::{HELP, Slash};

/// Hold a conversation
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  marlin chat
  marlin chat -m owner/repo:Q4_K_M --system \"Answer in French.\" --temperature 0.3

A line that ends in \\ goes on in the next one. Ctrl-C ends an answer, Ctrl-D the conversation;
/help lists what else there is.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelOptions,

    /// What the assistant is told first
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    #[command(flatten)]
    generation: GenerationOptions,

    #[command(flatten)]
    context: ContextOptions,

    /// Say after every answer what it took
    #[arg(short, long)]
    verbose: bool,
}

type Editor = rustyline::Editor<(), DefaultHistory>;

/// A conversation under way.
struct Chat {
    session: Session,
    conversation: Conversation,
    generation: GenerationOptions,
    interrupt: Interrupt,
    verbose: bool,
    last: Option<Totals>,
    answered: usize,
}

pub(crate) fn run(args: Args) -> Result<(), CliError> {
    let model = model::load_for(&args.model, &args.context)?;
    let session = model::session(&model, &args.context)?;
    let mut chat = Chat {
        session,
        conversation: Conversation::new(args.system),
        // Decided once, so that /set shows it and the conversation can be had again.
        generation: args.generation.decided_for(&args.model),
        interrupt: Interrupt::install()?,
        verbose: args.verbose,
        last: None,
        answered: 0,
    };
    note(&format!(
        "{} on {}. /help lists the commands.",
        model.source().name(),
        model.device_description()
    ));
    let config =
        Builder::new().auto_add_history(true).max_history_size(1000).map_err(editing)?.build();
    let mut editor = Editor::with_config(config).map_err(editing)?;
    let history = history_path();
    if let Some(path) = &history {
        // There is none the first time, and one that cannot be read is no reason not to talk.
        let _ = editor.load_history(path);
    }
    let ended = chat.converse(&mut editor);
    if let Some(path) = &history {
        let _ = path.parent().map(std::fs::create_dir_all);
        let _ = editor.save_history(path);
    }
    ended
}

impl Chat {
    /// Until the user leaves.
    fn converse(&mut self, editor: &mut Editor) -> Result<(), CliError> {
        while let Some(input) = read(editor)? {
            match Slash::parse(&input) {
                Ok(Some(Slash::Exit)) => break,
                Ok(Some(command)) => {
                    if let Err(error) = self.command(command) {
                        error.report();
                    }
                }
                Ok(None) if input.trim().is_empty() => {}
                Ok(None) => match self.answer(&input) {
                    Err(CliError::ReaderGone) => return Err(CliError::ReaderGone),
                    Err(error) => {
                        error.report();
                    }
                    Ok(()) => {}
                },
                Err(problem) => note(&problem),
            }
        }
        Ok(())
    }

    fn answer(&mut self, input: &str) -> Result<(), CliError> {
        // "//" is how a message begins with a slash.
        let text = if input.starts_with("//") { &input[1..] } else { input };
        let mut conversation = self.conversation.clone();
        conversation.say("user", text);
        let model = self.session.model().clone();
        let prompt = model.encode_chat(conversation.messages())?;
        let mut sampling = self.generation.sampling();
        // Another stream of random numbers for every answer.
        sampling.seed = sampling.seed.wrapping_add(self.answered as u64);
        let options = GenerateOptions {
            sampling,
            max_tokens: self.generation.max_tokens.get(),
            stop: self.generation.stop.clone(),
            cancel: Some(self.interrupt.flag()),
            ..GenerateOptions::default()
        };
        self.interrupt.clear();
        let mut writer = AnswerWriter::for_conversation();
        let generated =
            self.session.generate(&prompt, &options, &mut |text| writer.write(text)).map_err(
                |error| CliError::with_hint(error.to_string(), "/clear begins a new conversation"),
            )?;
        writer.finish()?;
        self.answered += 1;
        conversation.say("assistant", &generated.text);
        self.conversation = conversation;
        let ceilings = ceilings::remembered(&model).map(|ceilings| ceilings.read_bytes_per_s);
        let totals = Totals::new(&generated, &model, ceilings);
        match generated.stop_reason {
            StopReason::Context => {
                note("(the context is full: /clear begins anew, --ctx makes it larger)")
            }
            StopReason::MaxTokens => note("(--max-tokens reached: /set max-tokens N allows more)"),
            _ => {}
        }
        if self.verbose {
            note(&totals.text());
        }
        self.last = Some(totals);
        Ok(())
    }

    fn command(&mut self, command: Slash) -> Result<(), CliError> {
        match command {
            Slash::Help => HELP.lines().for_each(note),
            Slash::Clear => {
                self.conversation.clear();
                self.session.reset();
                self.last = None;
            }
            Slash::System(None) => {
                note(self.conversation.system().unwrap_or("(no system message)"))
            }
            Slash::System(Some(text)) => self.conversation.set_system(&text),
            Slash::Save(path) => {
                self.conversation.save(&path)?;
                note(&format!("saved to {}", path.display()));
            }
            Slash::Load(path) => {
                self.conversation = Conversation::load(&path)?;
                note(&format!(
                    "{} messages from {}",
                    self.conversation.messages().len(),
                    path.display()
                ));
            }
            Slash::Set(None) => {
                slash::settings(&self.generation).iter().for_each(|line| note(line))
            }
            Slash::Set(Some((name, value))) => {
                slash::set(&mut self.generation, &name, &value).map_err(CliError::failed)?;
            }
            Slash::Stats => {
                let ctx = self.session.options().ctx;
                let used =
                    self.last.as_ref().map_or(0, |last| last.prompt_tokens + last.generated_tokens);
                note(&self.last.as_ref().map_or_else(|| "no answer yet".to_owned(), Totals::text));
                note(&format!(
                    "context: {used} of {ctx} tokens, {}",
                    bytes(self.session.held_bytes())
                ));
            }
            Slash::Exit => {}
        }
        Ok(())
    }
}

/// One input, of several lines if all but the last end in a backslash; `None` when there is no
/// more.
fn read(editor: &mut Editor) -> Result<Option<String>, CliError> {
    let mut input = String::new();
    loop {
        match editor.readline(if input.is_empty() { "> " } else { "… " }) {
            Ok(line) => match line.strip_suffix('\\') {
                Some(line) => input += &format!("{line}\n"),
                None => return Ok(Some(input + &line)),
            },
            // Ctrl-C takes back what was typed.
            Err(ReadlineError::Interrupted) => {
                if input.is_empty() {
                    note("(Ctrl-D or /exit leaves)");
                }
                input.clear();
            }
            Err(ReadlineError::Eof) => {
                return Ok(if input.is_empty() { None } else { Some(input) });
            }
            Err(error) => return Err(editing(error)),
        }
    }
}

fn editing(error: ReadlineError) -> CliError {
    CliError::failed(format!("cannot read a line: {error}"))
}

fn history_path() -> Option<PathBuf> {
    Some(Cache::of_user().ok()?.root().join("chat-history"))
}
