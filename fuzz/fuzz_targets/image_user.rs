//! What an image says to run, and as whom: its config, its `/etc/passwd` and `/etc/group`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rehearsal::{ImageConfig, Options, fuzzing};

fuzz_target!(|data: (&[u8], &str, &str)| {
    let (config, passwd, group) = data;
    let process = ImageConfig::parse(config).and_then(|config| config.process(&Options::default()));
    let wanted = match &process {
        Ok(process) => {
            assert!(!process.args.is_empty() && !process.cwd.is_empty());
            process.user.as_str()
        }
        Err(_) => group,
    };
    if let Ok((uid, gid, groups)) = fuzzing::user(wanted, passwd, group) {
        assert!(groups.is_sorted());
        // A number stands for itself, whatever the files say.
        if let Some((user, group)) = wanted.split_once(':')
            && let (Ok(user), Ok(group)) = (user.parse::<u32>(), group.parse::<u32>())
            && !passwd.contains(&user.to_string())
        {
            assert_eq!(uid, user);
            let _ = (gid, group);
        }
    }
});
