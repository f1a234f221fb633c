//! Reports for people.

use std::fmt;

use time::OffsetDateTime;
use time::macros::format_description;

use super::{FileReport, ImageReport, LayerReport, PlatformReport};
pub(crate) use crate::table::{bytes, short};

fn or_dash<T: fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A path for a terminal: control characters are shown and not sent.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|character| {
            let escaped: Vec<char> =
                if character.is_control() { character.escape_default().collect() } else { vec![character] };
            escaped
        })
        .collect()
}

impl fmt::Display for ImageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.reference)?;
        writeln!(f, "  {}  {}", self.digest, self.media_type)?;
        self.platforms.iter().try_for_each(|platform| platform.fmt(f))
    }
}

impl fmt::Display for PlatformReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lazy = if self.lazy { "mounts lazily" } else { "is pulled before it starts" };
        writeln!(f)?;
        let (platform, layers) = (&self.platform, self.layers.len());
        let word = if layers == 1 { "layer" } else { "layers" };
        writeln!(f, "{platform}  {}  {layers} {word}, {}, {lazy}", short(&self.digest), bytes(self.size))?;
        let percent = self.start.bytes as f64 / self.size.max(1) as f64 * 100.0;
        let requests = if self.start.requests == 1 { "request" } else { "requests" };
        writeln!(
            f,
            "  a start fetches {} of {} ({percent:.1} %) by {} {requests}",
            bytes(self.start.bytes),
            bytes(self.size),
            self.start.requests,
        )?;
        writeln!(
            f,
            "  {:>2}  {:12}  {:>9}  {:22}  {:>9}  {:>5}  {:>8}  {:>8}  {:>8}  {:11}  {:>9}",
            "#",
            "LAYER",
            "SIZE",
            "KIND",
            "INFLATED",
            "RATIO",
            "ENTRIES",
            "FILES",
            "CHUNKS",
            "LANDMARK",
            "PREFETCH"
        )?;
        self.layers.iter().try_for_each(|layer| layer.fmt(f))
    }
}

impl fmt::Display for LayerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  {:>2}  {:12}  {:>9}  {:22}  {:>9}  {:>5}  {:>8}  {:>8}  {:>8}  {:11}  {:>9}",
            self.number,
            short(&self.digest),
            bytes(self.size),
            self.kind,
            or_dash(self.uncompressed_size.or(self.file_bytes).map(bytes)),
            or_dash(self.ratio.map(|ratio| format!("{ratio:.2}"))),
            or_dash(self.entries),
            or_dash(self.files),
            or_dash(self.chunks),
            or_dash(self.landmark),
            or_dash(self.prefetch_bytes.map(bytes)),
        )?;
        if let Some(problem) = &self.problem {
            writeln!(f, "      {}", printable(problem))?;
        }
        if let Some(files) = &self.file_list {
            return list(f, files);
        }
        Ok(())
    }
}

/// In the manner of `ls -l`: mode, owner and group, size or device, time, chunks, `P` for what is prefetched,
/// name.
fn list(f: &mut fmt::Formatter<'_>, files: &[FileReport]) -> fmt::Result {
    let size = |file: &FileReport| match file.device {
        Some((major, minor)) => format!("{major},{minor}"),
        None => file.size.to_string(),
    };
    let owner = |file: &FileReport| {
        let name = |name: &Option<String>, id: u32| name.clone().unwrap_or_else(|| id.to_string());
        printable(&format!("{}/{}", name(&file.user, file.uid), name(&file.group, file.gid)))
    };
    let widest = |texts: &mut dyn Iterator<Item = String>| texts.map(|text| text.len()).max().unwrap_or(0);
    let size_width = widest(&mut files.iter().map(size));
    let owner_width = widest(&mut files.iter().map(owner));
    let chunk_width = widest(&mut files.iter().map(|file| file.chunks.to_string()));
    for file in files {
        let chunks = if file.chunks == 0 { "-".to_owned() } else { file.chunks.to_string() };
        let prefetched = if file.prefetched { "P" } else { " " };
        write!(
            f,
            "      {}{} {:owner_width$} {:>size_width$} {} {chunks:>chunk_width$} {prefetched} {}",
            mode(file),
            if file.xattrs.is_empty() { " " } else { "+" },
            owner(file),
            size(file),
            moment(file.mtime),
            printable(if file.path.is_empty() { "." } else { &file.path }),
        )?;
        match (&file.link, file.kind) {
            (Some(link), "hardlink") => writeln!(f, " link to {}", printable(link))?,
            (Some(link), _) => writeln!(f, " -> {}", printable(link))?,
            (None, _) => writeln!(f)?,
        }
    }
    Ok(())
}

/// `-rwsr-xr-x`.
fn mode(file: &FileReport) -> String {
    let kind = match file.kind {
        "dir" => 'd',
        "symlink" => 'l',
        "hardlink" => 'h',
        "char" => 'c',
        "block" => 'b',
        "fifo" => 'p',
        _ => '-',
    };
    let bit = |mask: u16, letter: char| if file.mode & mask == 0 { '-' } else { letter };
    let execute = |mask: u16, special: u16, both: char, only: char| match (
        file.mode & mask != 0,
        file.mode & special != 0,
    ) {
        (true, true) => both,
        (false, true) => only,
        (true, false) => 'x',
        (false, false) => '-',
    };
    [
        kind,
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        execute(0o100, 0o4000, 's', 'S'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        execute(0o010, 0o2000, 's', 'S'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        execute(0o001, 0o1000, 't', 'T'),
    ]
    .into_iter()
    .collect()
}

/// `2020-09-13 12:26`, UTC.
fn moment(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(format_description!("[year]-[month]-[day] [hour]:[minute]")).ok())
        .unwrap_or_else(|| seconds.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(kind: &'static str, mode: u16) -> FileReport {
        FileReport {
            path: "a\nb".into(),
            kind,
            mode,
            uid: 0,
            gid: 5,
            user: Some("root".into()),
            group: None,
            size: 9,
            mtime: 1_600_000_000,
            link: None,
            device: None,
            xattrs: Vec::new(),
            digest: None,
            chunks: 0,
            offset: None,
            prefetched: false,
        }
    }

    #[test]
    fn modes_are_those_of_ls() {
        let shown = [("reg", 0o4755), ("dir", 0o1777), ("reg", 0o2640), ("symlink", 0o777), ("char", 0)]
            .map(|(kind, bits)| mode(&file(kind, bits)));
        assert_eq!(shown, ["-rwsr-xr-x", "drwxrwxrwt", "-rw-r-S---", "lrwxrwxrwx", "c---------"]);
    }

    #[test]
    fn a_listing_sends_no_control_characters() {
        struct Shown(FileReport);
        impl fmt::Display for Shown {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                list(f, std::slice::from_ref(&self.0))
            }
        }
        let line = Shown(file("reg", 0o644)).to_string();
        assert_eq!(line, "      -rw-r--r--  root/5 9 2020-09-13 12:26 -   a\\nb\n");
    }
}
