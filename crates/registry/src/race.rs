//! Asking several places for one thing: the next when one failed or has been silent for too long, until one answers.
//!
//! Whoever was asked goes on being waited for. So a host that is merely slow still wins if nobody else has an
//! answer, and a host that was frozen and thaws answers what it was asked long ago.

use std::pin::pin;
use std::time::Duration;

use content::Urgency;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use crate::client::Inner;
use crate::error::RegistryError;
use crate::hosts::Endpoint;
use crate::retry::Patience;

/// One place that was asked and has not answered.
struct Asked {
    host: String,
    at: Instant,
    endpoint: Endpoint,
}

impl Inner {
    /// Asks `endpoints` in order by `ask`. `answer` is the longest time that each may take.
    ///
    /// # Errors
    /// That of the last endpoint that failed, in their order: the registry's own word counts.
    pub(crate) async fn race<T, F: Future<Output = Result<T, RegistryError>>>(
        &self,
        endpoints: &[Endpoint],
        answer: Duration,
        ask: impl Fn(Endpoint) -> F,
    ) -> Result<Option<T>, RegistryError> {
        let hosts = endpoints.len();
        let Some(first) = endpoints.first() else { return Ok(None) };
        // Last of all the first one again, for when it is the connection that is dead and not the host.
        let mut endpoints = endpoints.to_vec();
        endpoints.push(first.anew());
        let mut begun = 0;
        let mut running = FuturesUnordered::new();
        let mut asked: Vec<(usize, Asked)> = Vec::new();
        let mut worst: Option<(usize, RegistryError)> = None;
        let (mut hedge_at, mut give_up_at) = (Instant::now(), Instant::now());
        let mut may_begin = true;
        // Whoever has more patience than a reader has time.
        let hedges = answer <= Patience::of(Urgency::Blocking).answer;
        self.pace.asked();
        loop {
            if may_begin && let Some(endpoint) = endpoints.get(begun).cloned() {
                let number = begun;
                begun += 1;
                let now = Instant::now();
                let host = endpoint.authority();
                hedge_at = now + self.pace.hedge_after(&host);
                give_up_at = now + self.pace.give_up_after(&host, answer);
                asked.push((number, Asked { host, at: now, endpoint: endpoint.clone() }));
                let answering = ask(endpoint);
                running.push(async move { (number, answering.await) });
            }
            may_begin = false;
            if running.is_empty() {
                return worst.map_or(Ok(None), |(_, error)| Err(error));
            }
            let more = begun < endpoints.len();
            let hedge = pin!(sleep_until(hedge_at));
            let give_up = pin!(sleep_until(give_up_at));
            let may_hedge = hedges && hedge_at < give_up_at;
            tokio::select! {
                Some((number, answered)) = running.next() => {
                    let at = asked.iter().position(|(other, _)| *other == number);
                    let one = at.map(|at| asked.swap_remove(at).1);
                    match answered {
                        Ok(found) => {
                            if let Some(one) = one {
                                self.pace.answered(&one.host, one.at.elapsed());
                            }
                            self.losers(asked.into_iter().map(|(_, asked)| asked), answer);
                            return Ok(Some(found));
                        }
                        Err(error) => {
                            tracing::debug!(%error, "asking elsewhere or again");
                            if worst.as_ref().is_none_or(|(known, _)| *known < number) {
                                worst = Some((number, error));
                            }
                            // The new connection is for silence, not for an answer that nobody likes.
                            may_begin = begun < hosts;
                        }
                    }
                }
                () = hedge, if more && may_hedge => {
                    if self.pace.may_hedge() {
                        self.transport.counters().hedged();
                        may_begin = true;
                    } else {
                        hedge_at = give_up_at;
                    }
                }
                () = give_up, if more => {
                    self.transport.counters().hedged();
                    may_begin = true;
                }
            }
        }
    }

    /// Those who were silent while another one answered.
    fn losers(&self, asked: impl Iterator<Item = Asked>, answer: Duration) {
        for one in asked {
            let silent = one.at.elapsed();
            // Who was asked just now has not lost anything.
            if silent < self.pace.hedge_after(&one.host) {
                continue;
            }
            let is_dead = silent >= self.pace.give_up_after(&one.host, answer);
            if self.pace.lost(&one.host, silent) || is_dead {
                self.aside.failed(&one.endpoint, Instant::now());
            }
        }
    }
}
