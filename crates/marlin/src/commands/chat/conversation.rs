//! What was said, and keeping it in a file.

use std::fs;
use std::io;
use std::path::Path;

use metal_marlin::Message;
use serde::{Deserialize, Serialize};

use crate::error::CliError;

/// Messages, the system's first if there is one. The file form is `{"messages": [{"role",
/// "content"}]}`, as chat APIs have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Conversation {
    messages: Vec<Message>,
}

const SYSTEM: &str = "system";

impl Conversation {
    pub(super) fn new(system: Option<String>) -> Self {
        Self { messages: system.map(|text| Message::new(SYSTEM, text)).into_iter().collect() }
    }

    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }

    pub(super) fn say(&mut self, role: &str, text: &str) {
        self.messages.push(Message::new(role, text));
    }

    pub(super) fn system(&self) -> Option<&str> {
        self.messages
            .first()
            .filter(|first| first.role == SYSTEM)
            .map(|first| first.content.as_str())
    }

    /// Replaces the system message; an empty text removes it.
    pub(super) fn set_system(&mut self, text: &str) {
        if self.system().is_some() {
            self.messages.remove(0);
        }
        if !text.is_empty() {
            self.messages.insert(0, Message::new(SYSTEM, text));
        }
    }

    /// Forgets everything but the system message.
    pub(super) fn clear(&mut self) {
        self.messages.truncate(usize::from(self.system().is_some()));
    }

    /// Writes the conversation to `path`. An existing file is only replaced if it is a conversation
    /// too.
    pub(super) fn save(&self, path: &Path) -> Result<(), CliError> {
        let failed = |error: io::Error| {
            CliError::failed(format!("{}: cannot write: {error}", path.display()))
        };
        if fs::symlink_metadata(path).is_ok() && Self::load(path).is_err() {
            let message = format!("{}: exists and is not a saved conversation", path.display());
            return Err(CliError::with_hint(message, "give another name"));
        }
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        fs::write(path, text + "\n").map_err(failed)
    }

    pub(super) fn load(path: &Path) -> Result<Self, CliError> {
        let text = fs::read_to_string(path).map_err(|error| {
            CliError::failed(format!("{}: cannot read: {error}", path.display()))
        })?;
        serde_json::from_str(&text).map_err(|error| {
            let expected = r#"expected {"messages": [{"role": …, "content": …}]}"#;
            CliError::failed(format!(
                "{}: not a saved conversation: {error}, {expected}",
                path.display()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Conversation {
        let mut conversation = Conversation::new(Some("Be brief.".to_owned()));
        conversation.say("user", "Hi\n\"there\"");
        conversation.say("assistant", "Hello");
        conversation
    }

    #[test]
    fn saving_and_loading_round_trips() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("talk.json");
        sample().save(&path).unwrap();
        assert_eq!(Conversation::load(&path).unwrap(), sample());
        // And may be saved again.
        sample().save(&path).unwrap();
    }

    #[test]
    fn another_file_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "text").unwrap();
        assert!(matches!(sample().save(&path), Err(CliError::Failed { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
        assert!(matches!(Conversation::load(&path), Err(CliError::Failed { .. })));
    }

    #[test]
    fn the_system_message_stays_first_and_survives_clearing() {
        let mut conversation = sample();
        conversation.set_system("Be long.");
        assert_eq!(conversation.messages()[0].content, "Be long.");
        assert_eq!(conversation.messages().len(), 3);
        conversation.clear();
        assert_eq!(conversation.messages(), [Message::new("system", "Be long.")]);
        conversation.set_system("");
        assert_eq!(conversation, Conversation::default());
        conversation.set_system("Back.");
        assert_eq!(conversation.system(), Some("Back."));
    }
}
