//! Commands within a conversation: `/help`, `/set temperature 0.5`, …

use std::path::PathBuf;
use std::str::FromStr;

use crate::options::{GenerationOptions, above_zero, at_least_zero, finite, fraction};

/// What `/help` says.
pub(super) const HELP: &str = "\
/help                 this list
/clear                begin a new conversation; the system message stays
/system [TEXT]        show or replace the system message; /system - removes it
/save FILE            keep the conversation in a file
/load FILE            go on with a conversation from a file
/set [NAME VALUE]     show or change settings, such as /set temperature 0.3
/stats                what the last answer took
/exit                 leave, as Ctrl-D does
A message that begins with a slash is written with two.";

/// A command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Slash {
    Help,
    Clear,
    /// Shows it without a text; an empty text removes it.
    System(Option<String>),
    Save(PathBuf),
    Load(PathBuf),
    /// Shows all without a name and value.
    Set(Option<(String, String)>),
    Stats,
    Exit,
}

impl Slash {
    /// Reads a command; `None` if `input` is a message.
    ///
    /// # Errors
    /// A line for the user, if it begins like a command and is none.
    pub(super) fn parse(input: &str) -> Result<Option<Self>, String> {
        let Some(command) = input.strip_prefix('/').filter(|rest| !rest.starts_with('/')) else {
            return Ok(None);
        };
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        let file = || {
            if rest.is_empty() {
                Err(format!("/{name}: expected a file name"))
            } else {
                Ok(PathBuf::from(rest))
            }
        };
        Ok(Some(match name {
            "help" | "?" => Self::Help,
            "clear" => Self::Clear,
            "system" => Self::System(match rest {
                "" => None,
                "-" => Some(String::new()),
                text => Some(text.to_owned()),
            }),
            "save" => Self::Save(file()?),
            "load" => Self::Load(file()?),
            "set" if rest.is_empty() => Self::Set(None),
            "set" => match rest.split_once(char::is_whitespace) {
                Some((name, value)) => Self::Set(Some((name.to_owned(), value.trim().to_owned()))),
                None => return Err(format!("/set {rest}: expected a name and a value")),
            },
            "stats" => Self::Stats,
            "exit" | "quit" | "bye" => Self::Exit,
            other => return Err(format!("/{other}: no such command; /help lists them")),
        }))
    }
}

/// The settings and their values, as `/set` shows them.
pub(super) fn settings(options: &GenerationOptions) -> Vec<String> {
    let sampling = options.sampling();
    [
        ("temperature", sampling.temperature.to_string()),
        ("top-k", options.top_k.to_string()),
        ("top-p", options.top_p.to_string()),
        ("min-p", options.min_p.to_string()),
        ("repeat-penalty", options.repeat_penalty.to_string()),
        ("presence-penalty", options.presence_penalty.to_string()),
        ("frequency-penalty", options.frequency_penalty.to_string()),
        ("repeat-last-n", options.repeat_last_n.to_string()),
        ("seed", sampling.seed.to_string()),
        ("max-tokens", options.max_tokens.to_string()),
        ("stop", format!("{:?}", options.stop)),
    ]
    .into_iter()
    .map(|(name, value)| format!("{name:<18} {value}"))
    .collect()
}

/// Changes one setting. Names are those of the command line's options.
///
/// # Errors
/// A line for the user, if there is no such setting or the value does not fit it; nothing is
/// changed.
pub(super) fn set(options: &mut GenerationOptions, name: &str, value: &str) -> Result<(), String> {
    let with_name = |error: String| format!("{name} {value}: {error}");
    let real = |parse: fn(&str) -> Result<f32, String>| parse(value).map_err(with_name);
    match name.trim_start_matches('-').replace('_', "-").as_str() {
        "temperature" => options.temperature = Some(real(at_least_zero)?),
        "top-k" => options.top_k = parse(value).map_err(with_name)?,
        "top-p" => options.top_p = real(fraction)?,
        "min-p" => options.min_p = real(fraction)?,
        "repeat-penalty" => options.repeat_penalty = real(above_zero)?,
        "presence-penalty" => options.presence_penalty = real(finite)?,
        "frequency-penalty" => options.frequency_penalty = real(finite)?,
        "repeat-last-n" => {
            let most = metal_marlin::SamplingSettings::MAX_REPEAT_LAST_N;
            let count: u32 = parse(value).map_err(with_name)?;
            if count > most {
                return Err(with_name(format!("expected at most {most}")));
            }
            options.repeat_last_n = count;
        }
        "seed" => options.seed = Some(parse(value).map_err(with_name)?),
        "max-tokens" => options.max_tokens = parse(value).map_err(with_name)?,
        "stop" if value == "-" => options.stop.clear(),
        "stop" => options.stop.push(value.to_owned()),
        _ => return Err(format!("{name}: no such setting; /set lists them")),
    }
    Ok(())
}

fn parse<T: FromStr<Err: std::fmt::Display>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|error: T::Err| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Defaults {
        #[command(flatten)]
        options: GenerationOptions,
    }

    fn options() -> GenerationOptions {
        Defaults::parse_from(["test"]).options
    }

    #[test]
    fn commands_are_told_from_messages() {
        assert_eq!(Slash::parse("hello /help"), Ok(None));
        assert_eq!(Slash::parse("//etc is a folder"), Ok(None));
        assert_eq!(Slash::parse("/help"), Ok(Some(Slash::Help)));
        assert_eq!(
            Slash::parse("/system  Be brief. "),
            Ok(Some(Slash::System(Some("Be brief.".to_owned()))))
        );
        assert_eq!(Slash::parse("/system -"), Ok(Some(Slash::System(Some(String::new())))));
        assert_eq!(
            Slash::parse("/save my talk.json"),
            Ok(Some(Slash::Save("my talk.json".into())))
        );
        assert_eq!(
            Slash::parse("/set top-k 5"),
            Ok(Some(Slash::Set(Some(("top-k".to_owned(), "5".to_owned())))))
        );
        for (wrong, expected) in [
            ("/sav", "no such command"),
            ("/save", "file name"),
            ("/set top-k", "a name and a value"),
        ] {
            assert!(Slash::parse(wrong).unwrap_err().contains(expected), "{wrong}");
        }
    }

    #[test]
    fn every_setting_that_is_shown_can_be_set() {
        let mut options = options();
        for line in settings(&options) {
            let name = line.split_whitespace().next().unwrap();
            set(&mut options, name, "1").unwrap_or_else(|error| panic!("{error}"));
        }
        assert_eq!(
            (options.top_k, options.seed, options.stop.as_slice()),
            (1, Some(1), &["1".to_owned()][..])
        );
    }

    #[test]
    fn a_wrong_value_changes_nothing_and_is_named() {
        let mut options = options();
        let before = settings(&options);
        for (name, value) in [
            ("temperature", "-1"),
            ("temperature", "hot"),
            ("top-p", "1.5"),
            ("min-p", "nan"),
            ("top-k", "-3"),
            ("repeat-penalty", "0"),
            ("repeat-last-n", "5000"),
            ("max-tokens", "0"),
            ("colour", "red"),
        ] {
            let error = set(&mut options, name, value).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
        assert_eq!(settings(&options), before);
    }
}
