//! Certificates: the system's roots do not know the server; an additional CA or an explicit word does.

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::noise;
use content::{Digest, Locator, ReadErrorKind};
use registry::{Client, ClientConfig, UpstreamRule, Upstreams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

#[tokio::test]
async fn an_unknown_certificate_is_refused_unless_its_ca_or_the_host_is_listed() {
    // Building a client installs the provider that the server uses as well.
    let _ = Client::new(ClientConfig::default()).unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = made.signing_key.serialize_der().try_into().unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let blob = noise(100);
    let body: Bytes = blob.clone();
    let server = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, body) = (acceptor.clone(), body.clone());
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = tls.read_u8().await else { return };
                    head.push(byte);
                }
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                let _ = tls.write_all(&[answer.as_bytes(), &body].concat()).await;
                let _ = tls.shutdown().await;
            });
        }
    });
    let locator = Locator {
        registry: format!("https://{address}"),
        repository: "team/app".to_owned(),
        digest: Digest::of(&blob),
    };
    let rule = UpstreamRule { host: Some("127.0.0.1".to_owned()), ..UpstreamRule::default() };
    let upstreams = Some(Upstreams::new(&[rule], false).unwrap());
    let tail = async |config: ClientConfig| {
        let client = Client::new(ClientConfig { upstreams: upstreams.clone(), ..config }).unwrap();
        client.origin_of(&locator, None).unwrap().tail(10).await
    };
    let pem = made.cert.pem().into_bytes();
    let trusting = ClientConfig { extra_roots: vec![pem], ..ClientConfig::default() };
    assert_eq!(tail(trusting).await.unwrap().bytes, blob.slice(90..));
    let careless = ClientConfig { skip_tls_verify: vec![address.to_string()], ..ClientConfig::default() };
    assert_eq!(tail(careless).await.unwrap().bytes, blob.slice(90..));
    let strict = tail(ClientConfig::default()).await.unwrap_err();
    assert_eq!(strict.kind(), ReadErrorKind::Other);
    assert!(strict.to_string().contains("add the CA"), "{strict}");
    assert!(!strict.is_transient(), "the certificate will be the same next time");
    server.abort();

    // The commonest mistake of all: https asked of a server that speaks plain HTTP.
    let plain = common::Server::start(|_, _| async { common::status(200) }).await;
    let rule = UpstreamRule { host: Some("127.0.0.1".to_owned()), ..UpstreamRule::default() };
    let upstreams = Some(Upstreams::new(&[rule], false).unwrap());
    let client = Client::new(ClientConfig { upstreams, ..ClientConfig::default() }).unwrap();
    let locator = Locator { registry: format!("https://{}", plain.host()), ..locator };
    let error = client.origin_of(&locator, None).unwrap().tail(10).await.unwrap_err();
    assert!(error.to_string().contains("plain HTTP"), "{error}");
}

#[tokio::test]
async fn a_ca_file_without_certificates_is_named() {
    let config = ClientConfig {
        extra_roots: vec![b"-----BEGIN CERTIFICATE-----\nnonsense".to_vec()],
        ..ClientConfig::default()
    };
    assert!(Client::new(config).is_err());
}
