//! An error in the words that are printed.
//!
//! Each layer of an error says what it was doing, and many say in the same breath why it failed. Printing the
//! whole chain would say that twice. So a cause is printed only if what was printed so far does not say it.
//! What only the system says (a full disk, a missing right) is followed by what to do about it.

use std::fmt;

/// What is said to the user: the error, and each cause that adds something, joined by colons.
pub fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let cause = cause.trim();
        if cause.is_empty() || text.contains(cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(cause);
    }
    if let Some(advice) = advice(&text) {
        text.push_str("; ");
        text.push_str(advice);
    }
    text
}

/// An end with an exit code of its own, for commands whose result is one.
#[derive(Debug)]
pub struct Exit {
    code: u8,
    /// What went wrong, in the words that are printed; empty if the output said it.
    text: String,
}

impl Exit {
    /// The output said everything.
    pub const fn told(code: u8) -> Self {
        Self { code, text: String::new() }
    }

    /// There is no result.
    pub fn failed(code: u8, error: impl Into<anyhow::Error>) -> Self {
        Self { code, text: text(&error.into()) }
    }

    /// The exit code.
    pub const fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Exit {}

/// What to do about the few things that the system says of any file, wherever it was wanted. The numbers are
/// Linux' own.
fn advice(text: &str) -> Option<&'static str> {
    const SYSTEM: [(&str, &str); 3] = [
        ("(os error 28)", "free some space there, or keep it on another disk"),
        ("(os error 30)", "choose a directory that can be written to"),
        ("(os error 13)", "run it as root, or choose files that this user may use"),
    ];
    if text.contains("root") && text.contains("(os error 13)") {
        return None;
    }
    SYSTEM.iter().find(|(error, _)| text.contains(error)).map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading x: {0}")]
    struct Repeats(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("reading x")]
    struct Leaves(#[source] std::io::Error);

    fn full() -> std::io::Error {
        std::io::Error::from(std::io::ErrorKind::StorageFull)
    }

    #[test]
    fn a_cause_is_said_once_whoever_says_it() {
        for error in [anyhow::Error::new(Repeats(full())), anyhow::Error::new(Leaves(full()))] {
            assert_eq!(text(&error), "reading x: no storage space");
        }
        let error = Err::<(), _>(Repeats(full())).context("the node").unwrap_err();
        assert_eq!(text(&error), "the node: reading x: no storage space");
    }

    #[test]
    fn what_the_system_says_has_advice() {
        let full = std::io::Error::from_raw_os_error(28);
        let error = Err::<(), _>(full).context("cannot write /x").unwrap_err();
        let told = text(&error);
        assert!(told.ends_with("(os error 28); free some space there, or keep it on another disk"), "{told}");
    }

    #[test]
    fn causes_of_several_lines_end_cleanly() {
        assert_eq!(text(&anyhow::anyhow!("line 1\nline 2\n\n").context("file")), "file: line 1\nline 2");
    }
}
