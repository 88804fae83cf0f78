# ruff: noqa: D101 — each class is one object of the specification, which describes it
"""TypedDicts of the runtime specification's documents, for mypy and editors (cold; never imported at run time).

runtime-spec 1.3. Every member is optional here: ``validate`` says what is missing, and knows why.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class IDMapping(TypedDict, total=False):
    containerID: int
    hostID: int
    size: int


class Root(TypedDict, total=False):
    path: str
    readonly: bool


class Mount(TypedDict, total=False):
    destination: str
    source: str
    type: str
    options: list[str]
    uidMappings: list[IDMapping]
    gidMappings: list[IDMapping]


class User(TypedDict, total=False):
    uid: int
    gid: int
    umask: int
    additionalGids: list[int]
    username: str


class ConsoleSize(TypedDict, total=False):
    height: int
    width: int


class Capabilities(TypedDict, total=False):
    bounding: list[str]
    effective: list[str]
    inheritable: list[str]
    permitted: list[str]
    ambient: list[str]


class Rlimit(TypedDict, total=False):
    type: str
    soft: int
    hard: int


# Written as a call because ``class`` is a keyword.
IOPriority = TypedDict("IOPriority", {"class": str, "priority": int}, total=False)


class Scheduler(TypedDict, total=False):
    policy: str
    nice: int
    priority: int
    flags: list[str]
    runtime: int
    deadline: int
    period: int


class CPUAffinity(TypedDict, total=False):
    initial: str
    final: str


class Process(TypedDict, total=False):
    terminal: bool
    consoleSize: ConsoleSize
    cwd: str
    env: list[str]
    args: list[str]
    commandLine: str
    user: User
    capabilities: Capabilities
    rlimits: list[Rlimit]
    noNewPrivileges: bool
    apparmorProfile: str
    selinuxLabel: str
    oomScoreAdj: int
    scheduler: Scheduler
    ioPriority: IOPriority
    execCPUAffinity: CPUAffinity


class Hook(TypedDict, total=False):
    path: str
    args: list[str]
    env: list[str]
    timeout: int


class Hooks(TypedDict, total=False):
    prestart: list[Hook]
    createRuntime: list[Hook]
    createContainer: list[Hook]
    startContainer: list[Hook]
    poststart: list[Hook]
    poststop: list[Hook]


class Namespace(TypedDict, total=False):
    type: str
    path: str


class Device(TypedDict, total=False):
    type: str
    path: str
    major: int
    minor: int
    fileMode: int
    uid: int
    gid: int


class NetDevice(TypedDict, total=False):
    name: str


class DeviceRule(TypedDict, total=False):
    allow: bool
    type: str
    major: int
    minor: int
    access: str


class Memory(TypedDict, total=False):
    limit: int
    reservation: int
    swap: int
    kernel: int
    kernelTCP: int
    swappiness: int
    disableOOMKiller: bool
    useHierarchy: bool
    checkBeforeUpdate: bool


class CPU(TypedDict, total=False):
    shares: int
    quota: int
    burst: int
    period: int
    realtimeRuntime: int
    realtimePeriod: int
    cpus: str
    mems: str
    idle: int


class Pids(TypedDict, total=False):
    limit: int


class BlockWeight(TypedDict, total=False):
    major: int
    minor: int
    weight: int
    leafWeight: int


class BlockThrottle(TypedDict, total=False):
    major: int
    minor: int
    rate: int


class BlockIO(TypedDict, total=False):
    weight: int
    leafWeight: int
    weightDevice: list[BlockWeight]
    throttleReadBpsDevice: list[BlockThrottle]
    throttleWriteBpsDevice: list[BlockThrottle]
    throttleReadIOPSDevice: list[BlockThrottle]
    throttleWriteIOPSDevice: list[BlockThrottle]


class HugepageLimit(TypedDict, total=False):
    pageSize: str
    limit: int


class InterfacePriority(TypedDict, total=False):
    name: str
    priority: int


class Network(TypedDict, total=False):
    classID: int
    priorities: list[InterfacePriority]


class Rdma(TypedDict, total=False):
    hcaHandles: int
    hcaObjects: int


class Resources(TypedDict, total=False):
    devices: list[DeviceRule]
    memory: Memory
    cpu: CPU
    pids: Pids
    blockIO: BlockIO
    hugepageLimits: list[HugepageLimit]
    network: Network
    rdma: dict[str, Rdma]
    unified: dict[str, str]


class SyscallArg(TypedDict, total=False):
    index: int
    value: int
    valueTwo: int
    op: str


class Syscall(TypedDict, total=False):
    names: list[str]
    action: str
    errnoRet: int
    args: list[SyscallArg]


class Seccomp(TypedDict, total=False):
    defaultAction: str
    defaultErrnoRet: int
    architectures: list[str]
    flags: list[str]
    listenerPath: str
    listenerMetadata: str
    syscalls: list[Syscall]


class IntelRdt(TypedDict, total=False):
    closID: str
    schemata: list[str]
    l3CacheSchema: str
    memBwSchema: str
    enableMonitoring: bool


class MemoryPolicy(TypedDict, total=False):
    mode: str
    nodes: str
    flags: list[str]


class Personality(TypedDict, total=False):
    domain: str
    flags: list[str]


class TimeOffset(TypedDict, total=False):
    secs: int
    nanosecs: int


class TimeOffsets(TypedDict, total=False):
    monotonic: TimeOffset
    boottime: TimeOffset


class Linux(TypedDict, total=False):
    namespaces: list[Namespace]
    uidMappings: list[IDMapping]
    gidMappings: list[IDMapping]
    devices: list[Device]
    netDevices: dict[str, NetDevice]
    cgroupsPath: str
    resources: Resources
    sysctl: dict[str, str]
    seccomp: Seccomp
    rootfsPropagation: str
    maskedPaths: list[str]
    readonlyPaths: list[str]
    mountLabel: str
    intelRdt: IntelRdt
    memoryPolicy: MemoryPolicy
    personality: Personality
    timeOffsets: TimeOffsets


class VMHypervisor(TypedDict, total=False):
    path: str
    parameters: list[str]


class VMKernel(TypedDict, total=False):
    path: str
    parameters: list[str]
    initrd: str


class VMImage(TypedDict, total=False):
    path: str
    format: str


class VMMemoryRange(TypedDict, total=False):
    firstGFN: int
    firstMFN: int
    nrMFNs: int


class VMHardware(TypedDict, total=False):
    deviceTree: str
    vcpus: int
    memory: int
    dtdevs: list[str]
    iomems: list[VMMemoryRange]
    irqs: list[int]


class VM(TypedDict, total=False):
    hypervisor: VMHypervisor
    kernel: VMKernel
    image: VMImage
    hwConfig: VMHardware


class Config(TypedDict, total=False):
    ociVersion: str
    root: Root
    mounts: list[Mount]
    process: Process
    hostname: str
    domainname: str
    hooks: Hooks
    annotations: dict[str, str]
    linux: Linux
    vm: VM
    windows: dict[str, Any]
    solaris: dict[str, Any]
    zos: dict[str, Any]
    freebsd: dict[str, Any]


class State(TypedDict, total=False):
    ociVersion: str
    id: str
    status: Literal["creating", "created", "running", "stopped", "paused"]
    pid: int
    bundle: str
    annotations: dict[str, str]


class FeaturesLinux(TypedDict, total=False):
    namespaces: list[str]
    capabilities: list[str]
    cgroup: dict[str, bool]
    seccomp: dict[str, Any]
    apparmor: dict[str, bool]
    selinux: dict[str, bool]
    intelRdt: dict[str, Any]
    memoryPolicy: dict[str, list[str]]
    mountExtensions: dict[str, Any]
    netDevices: dict[str, bool]


class Features(TypedDict, total=False):
    ociVersionMin: str
    ociVersionMax: str
    hooks: list[str]
    mountOptions: list[str]
    linux: FeaturesLinux
    annotations: dict[str, str]
    potentiallyUnsafeConfigAnnotations: list[str]
