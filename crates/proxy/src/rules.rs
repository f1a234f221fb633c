//! Which requests use the cluster: the first rule that matches the URL decides.

use regex::Regex;
use url::Url;

use crate::ProxyError;
use crate::config::ProxyRule;

/// The rule that stands where none is given: blobs of registries.
const DEFAULT_RULE: &str = "blobs/sha256.*";

/// The rules, ready to be tried.
pub(crate) struct Rules(Vec<Rule>);

struct Rule {
    regex: Regex,
    use_https: bool,
    direct: bool,
    redirect: Option<String>,
}

/// What is to be done with a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Decision {
    /// Where to ask.
    pub url: Url,
    /// Whether the cluster may answer.
    pub p2p: bool,
}

impl Rules {
    pub(crate) fn new(rules: &[ProxyRule]) -> Result<Self, ProxyError> {
        let default = [ProxyRule { regx: DEFAULT_RULE.to_owned(), ..ProxyRule::default() }];
        let rules = if rules.is_empty() { &default[..] } else { rules };
        let compile = |rule: &ProxyRule| {
            let regex = Regex::new(&rule.regx)
                .map_err(|error| ProxyError::Config(format!("the rule {:?}: {error}", rule.regx)))?;
            let redirect = rule.redirect.clone().filter(|host| !host.is_empty());
            Ok(Rule { regex, use_https: rule.use_https, direct: rule.direct, redirect })
        };
        rules.iter().map(compile).collect::<Result<_, _>>().map(Self)
    }

    /// Decides about `url`. The result may name another host; whoever asks it checks it like any other.
    pub(crate) fn decide(&self, url: Url) -> Decision {
        let Some(rule) = self.0.iter().find(|rule| rule.regex.is_match(url.as_str())) else {
            return Decision { url, p2p: false };
        };
        let mut target = match &rule.redirect {
            Some(place) => redirected(&rule.regex, &url, place).unwrap_or(url),
            None => url,
        };
        if rule.use_https && target.scheme() == "http" {
            // From http to https a URL never fails to change.
            let _ = target.set_scheme("https");
        }
        Decision { url: target, p2p: !rule.direct }
    }
}

/// A host takes the place of the URL's host; anything with a slash is what the matched part becomes.
fn redirected(regex: &Regex, url: &Url, place: &str) -> Option<Url> {
    if place.contains('/') {
        return Url::parse(&regex.replace(url.as_str(), place)).ok();
    }
    Url::parse(&format!("{}://{place}{}", url.scheme(), &url[url::Position::BeforePath..])).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(regx: &str) -> ProxyRule {
        ProxyRule { regx: regx.to_owned(), ..ProxyRule::default() }
    }

    fn decide(rules: &[ProxyRule], url: &str) -> (String, bool) {
        let decision = Rules::new(rules).unwrap().decide(Url::parse(url).unwrap());
        (decision.url.into(), decision.p2p)
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let blob = "http://r.example/v2/a/blobs/sha256:00";
        assert_eq!(decide(&[], blob), (blob.to_owned(), true));
        assert!(!decide(&[], "http://r.example/v2/").1);
        let direct = ProxyRule { direct: true, ..rule("r\\.example") };
        assert!(!decide(&[direct.clone(), rule("blobs")], blob).1);
        assert!(decide(&[rule("blobs"), direct], blob).1);
    }

    #[test]
    fn hosts_and_schemes_are_exchanged() {
        let blob = "http://r.example/v2/a/blobs/sha256:00?x=1";
        let https = ProxyRule { use_https: true, ..rule("blobs") };
        assert_eq!(decide(&[https], blob).0, "https://r.example/v2/a/blobs/sha256:00?x=1");
        let other = ProxyRule { redirect: Some("m.example:5000".to_owned()), ..rule("blobs") };
        assert_eq!(decide(&[other], blob).0, "http://m.example:5000/v2/a/blobs/sha256:00?x=1");
        let rewrite = ProxyRule {
            redirect: Some("https://m.example/$1".to_owned()),
            ..rule("^http://r.example/(.*)$")
        };
        assert_eq!(decide(&[rewrite], blob).0, "https://m.example/v2/a/blobs/sha256:00?x=1");
    }

    #[test]
    fn a_wrong_expression_is_named() {
        let error = Rules::new(&[rule("(")]).err().unwrap();
        assert!(error.to_string().contains("\"(\""), "{error}");
    }
}
