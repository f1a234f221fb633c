//! A client of CRI, Kubernetes' container runtime interface: asks of containerd what the kubelet would.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use proto::cri;
use proto::cri::image_service_client::ImageServiceClient;
use proto::cri::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Channel;

use crate::grpc::Connection;

/// containerd's namespace of everything that came over CRI.
pub const NAMESPACE: &str = "k8s.io";

/// The interface at one containerd's socket.
#[derive(Debug, Clone)]
pub struct Cri {
    connection: Connection,
    cgroup: String,
}

/// A pod in the host's own network, and containers in it.
#[derive(Debug, Clone)]
pub struct Pod {
    id: String,
    config: cri::PodSandboxConfig,
}

/// What a command in a container came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code.
    pub code: i32,
}

impl Cri {
    /// Connects; pods' control groups are made below `cgroup`.
    pub fn connect(socket: &Path, cgroup: &str) -> Result<Self> {
        Ok(Self { connection: Connection::new(socket)?, cgroup: format!("/{cgroup}") })
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.connection.channel.clone())
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.connection.channel.clone())
    }

    /// Name and version of the runtime.
    pub fn version(&self) -> Result<(String, String)> {
        let answer = self.connection.wait(self.runtime().version(cri::VersionRequest::default()))?;
        let answer = answer.into_inner();
        Ok((answer.runtime_name, answer.runtime_version))
    }

    /// Pulls an image; answers the name that containers are made with.
    pub fn pull(&self, reference: &str) -> Result<String> {
        self.pull_as(reference, None)
    }

    /// The same with name and password.
    pub fn pull_as(&self, reference: &str, account: Option<(&str, &str)>) -> Result<String> {
        let auth = account.map(|(name, password)| cri::AuthConfig {
            username: name.into(),
            password: password.into(),
            ..cri::AuthConfig::default()
        });
        let request = cri::PullImageRequest { image: Some(spec(reference)), auth, sandbox_config: None };
        let answer = self.connection.wait(self.images().pull_image(request));
        Ok(answer.with_context(|| format!("pulling {reference}"))?.into_inner().image_ref)
    }

    /// The tags of all images.
    pub fn list(&self) -> Result<Vec<String>> {
        let answer = self.connection.wait(self.images().list_images(cri::ListImagesRequest::default()))?;
        Ok(answer.into_inner().images.into_iter().flat_map(|image| image.repo_tags).collect())
    }

    /// Removes an image.
    pub fn remove_image(&self, reference: &str) -> Result<()> {
        let request = cri::RemoveImageRequest { image: Some(spec(reference)) };
        self.connection.wait(self.images().remove_image(request))?;
        Ok(())
    }

    /// Starts a pod called `name`.
    pub fn run_pod(&self, name: &str) -> Result<Pod> {
        let node = cri::NamespaceMode::Node.into();
        let namespaces = cri::NamespaceOption { network: node, ..cri::NamespaceOption::default() };
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.into(),
                uid: format!("{name}-uid"),
                namespace: "lab".into(),
                attempt: 0,
            }),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    ..cri::LinuxSandboxSecurityContext::default()
                }),
            }),
            ..cri::PodSandboxConfig::default()
        };
        let request =
            cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let answer = self.connection.wait(self.runtime().run_pod_sandbox(request));
        let id = answer.with_context(|| format!("starting pod {name}"))?.into_inner().pod_sandbox_id;
        Ok(Pod { id, config })
    }

    /// Makes a container of an image in a pod and starts `command` in it; answers its identifier.
    pub fn start(&self, pod: &Pod, name: &str, image: &str, command: &[&str]) -> Result<String> {
        let node = cri::NamespaceMode::Node.into();
        let namespaces = cri::NamespaceOption { network: node, ..cri::NamespaceOption::default() };
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(spec(image)),
            command: command.iter().map(ToString::to_string).collect(),
            linux: Some(cri::LinuxContainerConfig {
                security_context: Some(cri::LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces),
                    ..cri::LinuxContainerSecurityContext::default()
                }),
            }),
            ..cri::ContainerConfig::default()
        };
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let answer = self.connection.wait(self.runtime().create_container(request));
        let id = answer.with_context(|| format!("making container {name}"))?.into_inner().container_id;
        let request = cri::StartContainerRequest { container_id: id.clone() };
        let started = self.connection.wait(self.runtime().start_container(request));
        started.with_context(|| format!("starting container {name}"))?;
        Ok(id)
    }

    /// Whether a container runs, and how it ended.
    pub fn status(&self, container: &str) -> Result<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: container.into(), verbose: false };
        let answer = self.connection.wait(self.runtime().container_status(request))?;
        answer.into_inner().status.context("a status without a status")
    }

    /// Runs a command in a container to its end.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<Executed> {
        let request = cri::ExecSyncRequest {
            container_id: container.into(),
            cmd: command.iter().map(ToString::to_string).collect(),
            timeout: 60,
        };
        let answer = self.connection.wait(self.runtime().exec_sync(request));
        let answer = answer.with_context(|| format!("running {command:?} in {container}"))?.into_inner();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Executed { stdout: text(&answer.stdout), stderr: text(&answer.stderr), code: answer.exit_code })
    }

    /// Starts `command` in a pod of its own and leaves it running; answers pod and container.
    pub fn run_detached(&self, name: &str, image: &str, command: &[&str]) -> Result<(Pod, String)> {
        let pod = self.run_pod(name)?;
        let container = self.start(&pod, name, image, command)?;
        let status = self.status(&container)?;
        ensure!(status.state() == cri::ContainerState::ContainerRunning, "{name} does not run: {status:?}");
        Ok((pod, container))
    }

    /// Stops a pod and removes it with its containers.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        let pod_sandbox_id = pod.id.clone();
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        self.connection.wait(self.runtime().stop_pod_sandbox(request)).context("stopping a pod")?;
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id };
        self.connection.wait(self.runtime().remove_pod_sandbox(request)).context("removing a pod")?;
        Ok(())
    }
}

fn spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.into(), ..cri::ImageSpec::default() }
}
