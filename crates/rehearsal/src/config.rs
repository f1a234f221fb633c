//! What an image's config says about the process to run, and what the user says instead.

use serde::Deserialize;

use crate::error::RehearsalError;
use crate::options::Options;

/// Where programs are looked for if the image does not say; as in containerd.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The part of an image's config that says what to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ImageConfig {
    #[serde(default)]
    config: Run,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
}

/// A process to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Directory in which it starts.
    pub cwd: String,
    /// `user[:group]`, names or numbers; may be empty.
    pub user: String,
}

impl ImageConfig {
    /// Reads a config.
    ///
    /// # Errors
    /// That it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, RehearsalError> {
        serde_json::from_slice(bytes).map_err(RehearsalError::Config)
    }

    /// What to run: the image's own process, with what `options` say instead. As everywhere, another entry point
    /// also takes the image's arguments away.
    ///
    /// # Errors
    /// That neither says which program.
    pub fn process(&self, options: &Options) -> Result<Process, RehearsalError> {
        let run = &self.config;
        let entrypoint = options.entrypoint.as_ref().or(run.entrypoint.as_ref());
        let own = if options.entrypoint.is_some() { None } else { run.cmd.as_ref() };
        let args = options.args.as_ref().or(own);
        let args: Vec<String> = entrypoint.into_iter().chain(args).flatten().cloned().collect();
        if args.is_empty() {
            return Err(RehearsalError::NoProgram);
        }
        let mut env: Vec<String> = Vec::new();
        let terminal = options.terminal.then(|| "TERM=xterm".to_owned());
        let given = run.env.iter().flatten().chain(&options.env).cloned();
        for variable in std::iter::once(PATH.to_owned()).chain(terminal).chain(given) {
            let name = variable.split('=').next().unwrap_or_default().to_owned();
            match env.iter_mut().find(|it| it.split('=').next() == Some(&name)) {
                Some(earlier) => *earlier = variable,
                None => env.push(variable),
            }
        }
        let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Ok(Process {
            args,
            env,
            cwd: set(&options.cwd).or_else(|| set(&run.working_dir)).unwrap_or_else(|| "/".to_owned()),
            user: set(&options.user).or_else(|| set(&run.user)).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(config: &str, options: &Options) -> Process {
        ImageConfig::parse(config.as_bytes()).unwrap().process(options).unwrap()
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    const CONFIG: &str = r#"{"architecture": "amd64", "config": {"Entrypoint": ["/e", "1"], "Cmd": ["c"], "Env": ["A=1",
        "PATH=/p"], "WorkingDir": "/w", "User": "u:g"}}"#;

    #[test]
    fn the_image_says_what_runs() {
        let process = process(CONFIG, &Options::default());
        assert_eq!(process.args, words("/e 1 c"));
        assert_eq!(process.env, words("PATH=/p A=1"));
        assert_eq!((process.cwd.as_str(), process.user.as_str()), ("/w", "u:g"));
    }

    #[test]
    fn the_user_may_say_otherwise() {
        let args = Options { args: Some(words("x y")), ..Options::default() };
        assert_eq!(process(CONFIG, &args).args, words("/e 1 x y"));
        let entrypoint = Options { entrypoint: Some(words("/n")), ..Options::default() };
        assert_eq!(process(CONFIG, &entrypoint).args, words("/n"));
        let both = Options { args: Some(words("x")), ..entrypoint };
        assert_eq!(process(CONFIG, &both).args, words("/n x"));
        let other = Options {
            env: words("A=2 B=3"),
            cwd: Some("/o".to_owned()),
            user: Some("5".to_owned()),
            terminal: true,
            ..Options::default()
        };
        let process = process(CONFIG, &other);
        assert_eq!(process.env, words("PATH=/p TERM=xterm A=2 B=3"));
        assert_eq!((process.cwd.as_str(), process.user.as_str()), ("/o", "5"));
    }

    #[test]
    fn an_image_without_a_program_needs_one() {
        for config in
            ["{}", r#"{"config": {}}"#, r#"{"config": {"Cmd": null, "Entrypoint": null, "Env": null}}"#]
        {
            let config = ImageConfig::parse(config.as_bytes()).unwrap();
            assert!(matches!(config.process(&Options::default()), Err(RehearsalError::NoProgram)));
            let given = Options { args: Some(words("/p")), ..Options::default() };
            let process = config.process(&given).unwrap();
            assert_eq!((process.args, process.cwd.as_str()), (words("/p"), "/"));
        }
        assert!(ImageConfig::parse(b"[").is_err());
    }
}
