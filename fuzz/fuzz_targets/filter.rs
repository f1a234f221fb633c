//! The filter language of `List`: no text stops the process, and a quoted value finds what it quotes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshotter::fuzzing::Filter;

fuzz_target!(|text: &str| {
    if let Ok(filter) = Filter::parse(&[text.to_owned()]) {
        let found = filter.matches(|_| Some("sha256:aa"));
        assert_eq!(found, filter.matches(|_| Some("sha256:aa")));
        // Of several filters one is enough.
        let either = Filter::parse(&[text.to_owned(), "x".to_owned()]).expect("both are filters");
        assert!(either.matches(|path| (path == ["x"]).then_some("")));
        filter.matches(|_| None);
    }
    let quoted: String = text
        .chars()
        .map(|c| match c {
            '"' | '\\' => format!("\\{c}"),
            other => format!("\\U{:08x}", u32::from(other)),
        })
        .collect();
    let path = ["labels".to_owned(), text.to_owned()];
    let filter = Filter::parse(&[format!("labels.\"{quoted}\"==\"{quoted}\"")]).expect("this is a filter");
    assert!(filter.matches(|asked| (asked == path).then_some(text)));
    assert!(!filter.matches(|asked| (asked != path).then_some(text)), "another field was asked for");
    let longer = format!("{text}x");
    assert!(!filter.matches(|_| Some(&longer)));
});
