//! Names by which a layer takes things away from the layers below it.
//!
//! They are kept in the TOC as they stand in the tar. Whoever presents a layer as the upper part of an
//! overlay turns them into what overlayfs understands.

/// Stands before the name that is taken away.
pub(crate) const WHITEOUT_PREFIX: &[u8] = b".wh.";
const META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a name with the whiteout prefix means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whiteout<'a> {
    /// The sibling of this name is removed (overlayfs: a character device 0:0 of that name).
    Removed(&'a [u8]),
    /// Everything that lower layers have in this directory is removed (overlayfs: an `overlay.opaque`
    /// xattr on the directory).
    Opaque,
    /// Bookkeeping of an old union file system: it is not shown.
    Meta,
}

/// What `name`, one part of a path, takes away; `None` for an ordinary name.
pub fn whiteout(name: &[u8]) -> Option<Whiteout<'_>> {
    if name == OPAQUE {
        return Some(Whiteout::Opaque);
    }
    if name.starts_with(META_PREFIX) {
        return Some(Whiteout::Meta);
    }
    name.strip_prefix(WHITEOUT_PREFIX).map(|target| match target {
        b"" | b"." | b".." => Whiteout::Meta,
        _ => Whiteout::Removed(target),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_they_take_away() {
        assert_eq!(whiteout(b".wh.etc"), Some(Whiteout::Removed(b"etc")));
        assert_eq!(whiteout(b".wh..wh..opq"), Some(Whiteout::Opaque));
        assert_eq!(whiteout(b".wh..wh.plnk"), Some(Whiteout::Meta));
        assert_eq!(whiteout(b".wh."), Some(Whiteout::Meta));
        assert_eq!(whiteout(b".wh..."), Some(Whiteout::Meta));
        assert_eq!(whiteout(b".whx"), None);
        assert_eq!(whiteout(b"etc"), None);
    }
}
