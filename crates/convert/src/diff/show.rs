//! The report for people: a line for each difference, nothing if there is none.

use std::fmt;

use super::{Change, ConfigChange, DiffReport, FieldChange};
use crate::inspect::show::printable;

impl fmt::Display for DiffReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.equal {
            return Ok(());
        }
        for (mark, side) in [("---", &self.a), ("+++", &self.b)] {
            writeln!(f, "{mark} {}  {}  {}", side.reference, side.platform, side.digest)?;
        }
        self.changes.iter().try_for_each(|change| writeln!(f, "{change}"))?;
        if !self.config.is_empty() {
            writeln!(f, "config:")?;
        }
        self.config.iter().try_for_each(|change| writeln!(f, "  {change}"))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = String::from_utf8_lossy(&self.path);
        let path = if path.is_empty() { "/" } else { &path };
        write!(f, "{} {}", self.change.letter(), printable(path))?;
        if self.fields.is_empty() {
            return Ok(());
        }
        let fields: Vec<String> = self.fields.iter().map(ToString::to_string).collect();
        write!(f, " ({})", fields.join(", "))
    }
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field == "content" {
            // The sizes say something, digests do not.
            let size = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
            let (a, b) = (size(&self.a), size(&self.b));
            return if a == b { f.write_str("content") } else { write!(f, "content {a}→{b} bytes") };
        }
        write!(f, "{} {}→{}", self.field, printable(&self.a), printable(&self.b))
    }
}

impl fmt::Display for ConfigChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = printable(&self.field);
        match (&self.a, &self.b) {
            (Some(a), Some(b)) => write!(f, "M {field} ({a}→{b})"),
            (Some(a), None) => write!(f, "D {field} ({a})"),
            (None, Some(b)) => write!(f, "A {field} ({b})"),
            (None, None) => Ok(()),
        }
    }
}
