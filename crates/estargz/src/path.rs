//! Names in a layer: relative, without `.` and `..`, each part a possible file name.

/// Longest path in bytes, as `PATH_MAX` has it. Also bounds how many parents one entry can imply.
pub(crate) const MAX_PATH: usize = 4096;

/// Longest name of one directory entry in bytes, as `NAME_MAX` has it.
pub(crate) const MAX_NAME: usize = 255;

/// Why a path cannot stand in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// A `..` part: it could lead out of the layer.
    #[error("the path has a .. part")]
    Parent,
    /// A NUL byte.
    #[error("the path has a NUL byte")]
    Nul,
    /// A part of more than 255 bytes.
    #[error("a part of the path is longer than 255 bytes")]
    LongName,
    /// More than 4096 bytes in all.
    #[error("the path is longer than 4096 bytes")]
    LongPath,
}

/// Appends the clean form of `path` to `out`: no leading or doubled slash, no `.` part. The root is empty.
pub(crate) fn clean(path: &[u8], out: &mut Vec<u8>) -> Result<(), PathProblem> {
    if path.contains(&0) {
        return Err(PathProblem::Nul);
    }
    let start = out.len();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(PathProblem::Parent),
            _ if part.len() > MAX_NAME => return Err(PathProblem::LongName),
            _ => {}
        }
        if out.len() > start {
            out.push(b'/');
        }
        out.extend_from_slice(part);
    }
    if out.len() - start > MAX_PATH {
        return Err(PathProblem::LongPath);
    }
    Ok(())
}

/// Orders paths so that a directory stands before everything below it, and that before its next sibling.
pub(crate) fn tree_order(a: &[u8], b: &[u8]) -> std::cmp::Ordering {
    // Paths of a hostile layer may begin alike for 4 KiB: that much is compared in strides.
    const STRIDE: usize = 64;
    let strides = a.chunks(STRIDE).zip(b.chunks(STRIDE)).take_while(|(a, b)| a == b).count();
    let rest = |path| <[u8]>::get(path, strides * STRIDE..).unwrap_or_default();
    let slash_first = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    rest(a).iter().map(slash_first).cmp(rest(b).iter().map(slash_first))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(path: &str) -> Result<String, PathProblem> {
        let mut out = Vec::new();
        clean(path.as_bytes(), &mut out).map(|()| String::from_utf8(out).unwrap())
    }

    #[test]
    fn many_spellings_are_one_path() {
        for spelling in ["usr/bin", "./usr/bin", "/usr/bin/", "usr//bin", "usr/./bin/."] {
            assert_eq!(cleaned(spelling).as_deref(), Ok("usr/bin"));
        }
        for spelling in ["", ".", "./", "/"] {
            assert_eq!(cleaned(spelling).as_deref(), Ok(""));
        }
        assert_eq!(cleaned("..a/b..").as_deref(), Ok("..a/b.."));
    }

    #[test]
    fn a_way_out_is_no_path() {
        for path in ["..", "../x", "/a/../b", "a/.."] {
            assert_eq!(cleaned(path), Err(PathProblem::Parent), "{path}");
        }
        assert_eq!(cleaned("a\0b"), Err(PathProblem::Nul));
        assert_eq!(cleaned(&"x".repeat(256)), Err(PathProblem::LongName));
        assert!(cleaned(&"x".repeat(255)).is_ok());
        assert_eq!(cleaned(&"x/".repeat(3000)), Err(PathProblem::LongPath));
    }

    #[test]
    fn a_directory_stands_before_its_content_and_that_before_its_sibling() {
        let mut paths = ["a.b", "a/x", "a", "a-b", "a/x/y", "a/b"].map(str::as_bytes);
        paths.sort_by(|a, b| tree_order(a, b));
        assert_eq!(paths, ["a", "a/b", "a/x", "a/x/y", "a-b", "a.b"].map(str::as_bytes));
    }

    #[test]
    fn the_order_does_not_depend_on_how_long_paths_begin_alike() {
        use std::cmp::Ordering::{Equal, Greater, Less};
        for len in 0..200 {
            let same = "x".repeat(len);
            let path = |end: &str| format!("{same}{end}").into_bytes();
            for (a, b, order) in [
                ("", "", Equal),
                ("", "/y", Less),
                ("/y", "-y", Less),
                ("b", "/b", Greater),
                ("y", "z", Less),
            ] {
                assert_eq!(tree_order(&path(a), &path(b)), order, "{len} bytes, then {a:?} and {b:?}");
                assert_eq!(tree_order(&path(b), &path(a)), order.reverse());
            }
        }
    }
}
