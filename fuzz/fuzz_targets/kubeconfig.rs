//! A kubeconfig.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshotter::fuzzing::fuzz_kubeconfig;

fuzz_target!(|text: &str| fuzz_kubeconfig(text));
