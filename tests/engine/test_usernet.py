"""``--network slirp4netns|pasta`` and ``-p`` with the real programs, as root and as ordinary users."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from networkkit import caller, does, echo_server, need, on_own_machine

if TYPE_CHECKING:
    from enginekit import Person


@pytest.fixture(params=["slirp4netns", "pasta"])
def network(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    need(name)
    return name


@pytest.fixture
def there(person: Person, network: str) -> Person:  # network skips first
    return on_own_machine(person)


def test_out_in_and_by_name(there: Person, image: str, network: str) -> None:
    """Streams, datagrams and names out; ports in, that are there when the program runs; the way back is closed."""
    said = does(
        there,
        f"""
image, network = {image!r}, {network!r}
port, closed = serve(HOST4), serve("127.0.0.1", b"loopback")
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind((HOST4, 53))
def name_server():
    while True:
        asked, who = names.recvfrom(1000)
        head = asked[:2] + b"\\x85\\x80\\0\\1\\0\\1\\0\\0\\0\\0"
        names.sendto(head + asked[12:] + b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4\\x0a\\x4d\\0\\7", who)
threading.Thread(target=name_server, daemon=True).start()
script = {caller(network)!r} + f'''
busybox ip route | busybox grep -o "^default"
call {{HOST4}} {{port}}
busybox nslookup -type=a b.test {{HOST4}} | busybox grep -o "Address: 10.77.0.7"
for each in 10.0.2.2 10.77.0.254 127.0.0.1; do
    busybox timeout 1 busybox nc $each {{closed}} </dev/null 2>&1 | busybox grep loopback
done
busybox nslookup -type=a a.some.test | busybox grep -o "Address: 10.77.0.7"
busybox grep -c some.test /etc/resolv.conf
'''
done = knarr.run(image, ["sh", "-c", script], network=network)
print(done.stdout.decode(), done.stderr.decode())
""",
    )
    name = "Address: 10.77.0.7"
    assert said.splitlines()[:5] == ["default", "from here", name, name, "1"], said


def test_published(there: Person, image: str, network: str) -> None:
    """Two containers at once with the same port inside, a stream and a datagram each, and the record of them."""
    echo = echo_server(there.folder)
    said = does(
        there,
        f"""
image, network = {image!r}, {network!r}
volumes = [f"{echo}:/echo:ro"]
words = ["sh", "-c", "echo $0 > /tmp/index.html; /echo & exec busybox httpd -f -p 80 -h /tmp"]
publish = ["127.0.0.1::80", f"{{HOST4}}::81/udp"]  # datagrams from loopback are another matter (docs/engine.md)
with knarr.Container(image, [*words, "one"], network=network, publish=publish, volumes=volumes) as one:
    with knarr.Container(image, [*words, "two"], network=network, publish=publish, volumes=volumes) as two:
        for box in (one, two):
            print(until(lambda: get(box.ports["80/tcp"][1])))
            asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            asking.settimeout(0.5)
            asking.bind((HOST4, 0))
            asking.connect((HOST4, box.ports["81/udp"][1]))
            print(until(lambda: asking.send(b"echo") and asking.recv(100)))
    try:
        get(two.ports["80/tcp"][1])
    except OSError:
        print("closed")
    try:
        knarr.run(image, ["true"], network=network, publish=[f"127.0.0.1:{{one.ports['80/tcp'][1]}}:80"])
    except KnarrError as error:
        print(str(error).replace(str(one.ports["80/tcp"][1]), "PORT"))
    listening = open("/proc/net/tcp").read().splitlines()[1:]
    print([line.split()[1][:8] for line in listening if line.split()[3] == "0A"])
again = socket.create_server(("127.0.0.1", one.ports["80/tcp"][1]))
""",
    )
    assert said.splitlines() == [
        *("b'one\\n'", "b'echo'", "b'two\\n'", "b'echo'", "closed"),
        "port 127.0.0.1:PORT/tcp is in use by another program",
        "['0100007F']",
    ], said


def test_ipv6(there: Person, image: str, network: str) -> None:
    said = does(
        there,
        f"""
port, closed = serve(HOST6), serve("::1", b"loopback")
script = {caller(network)!r} + f'''
for i in $(busybox seq 80); do busybox ip -6 address | busybox grep "scope global" | busybox grep -qv tentative && break
    sleep 0.1; done
call {{HOST6}} {{port}}
for each in fd00::2 fd77::fe ::1; do
    busybox timeout 1 busybox nc $each {{closed}} </dev/null 2>&1 | busybox grep loopback
done
'''
print(knarr.run({image!r}, ["sh", "-c", script], network={network!r}).stdout.decode())
""",
    )
    assert said.split("\n")[:2] == ["from here", ""], said


def test_this_machines_loopback_where_it_is_asked_for(person: Person, image: str) -> None:
    """slirp4netns: the gateway stands for it; its address is in /etc/hosts then."""
    need("slirp4netns")
    said = does(
        on_own_machine(person),
        f"""
port = serve("127.0.0.1", b"loopback")
words = ["sh", "-c", f"busybox timeout 1 busybox nc 10.9.0.2 {{port}} </dev/null; echo; busybox cat /etc/hosts; busybox ip link"]
options = "slirp4netns:allow_host_loopback=true,cidr=10.9.0.0/24,mtu=1400,enable_ipv6=false,port_handler=slirp4netns"
done = knarr.run({image!r}, words, network=options, hostname="me", add_hosts={{"up": "host-gateway", "x": "192.0.2.9"}})
print(done.stdout.decode())
""",
    )
    lines = said.splitlines()
    assert lines[0] == "loopback", said
    assert "10.9.0.100\tme" in lines
    assert "10.9.0.2\thost.containers.internal host.docker.internal" in lines
    assert "10.9.0.2\tup" in lines
    assert "192.0.2.9\tx" in lines
    assert "mtu 1400" in said


KILLS = """
image, network = {image!r}, {network!r}
import json, signal
base = [sys.executable, "-m", "knarr.cli.main"]
def started(name):
    words = ["run", "--name", name, "--network", network, "-p", "127.0.0.1::80", image]
    words += ["--", "sh", "-c", "echo yes > /tmp/index.html; exec busybox httpd -f -p 80 -h /tmp"]
    process = subprocess.Popen([*base, *words])
    def port():
        done = subprocess.run([*base, "port", name, "80"], capture_output=True, text=True)
        return done.returncode == 0 and int(done.stdout.rpartition(":")[2])
    number = until(port)
    assert until(lambda: get(number)) == b"yes\\n"
    folder = [each for each in os.listdir(os.environ["KNARR_RUN"]) if not each.startswith(".")][0]
    state = json.load(open(os.path.join(os.environ["KNARR_RUN"], folder, "state.json")))
    return process, number, state["pid"], state["network"]["pid"]
def there(pid):
    try:
        return open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
def children(pid):
    return [int(each) for each in open(f"/proc/{{pid}}/task/{{pid}}/children").read().split()]
def closed(number):
    try:
        get(number)
    except OSError:
        return True
def removed(name):
    done = subprocess.run([*base, "rm", "-f", name], capture_output=True, text=True)
    assert done.returncode == 0, done

# knarr itself: the container goes on, and so does its network
process, number, pid, keeper = started("one")
os.kill(process.pid, signal.SIGKILL)
process.wait()
time.sleep(0.3)
assert get(number) == b"yes\\n" and there(pid) and there(keeper)
removed("one")
assert not there(keeper)
socket.create_server(("127.0.0.1", number)).close()  # free when rm returns

# the container's first process, with nobody there to notice
process, number, pid, keeper = started("two")
os.kill(process.pid, signal.SIGKILL)
process.wait()
os.kill(pid, signal.SIGKILL)
assert until(lambda: not there(keeper) and closed(number))
removed("two")

# what watches over the program: the kernel ends that, the container goes on without
process, number, pid, keeper = started("three")
programs = children(keeper)
assert programs
os.kill(keeper, signal.SIGKILL)
assert until(lambda: not any(map(there, programs)) and closed(number))
assert there(pid)
removed("three")
process.wait()

# the program
process, number, pid, keeper = started("four")
for each in children(keeper):
    os.kill(each, signal.SIGKILL)
assert until(lambda: closed(number)) and there(pid)
process.terminate()
assert process.wait() == 128 + signal.SIGTERM
assert not there(keeper)
removed("four")
print("held")
"""


def test_whoever_is_killed_nothing_is_left(there: Person, image: str, network: str) -> None:
    if there.kind == "nobody-subids":
        pytest.skip("as the other ordinary user")
    assert does(there, KILLS.format(image=image, network=network)).splitlines()[-1] == "held"


def test_a_start_that_fails_takes_it_along(there: Person, image: str, network: str) -> None:
    said = does(
        there,
        f"""
for words in (["/missing"], ["sh", "-c", "exit 3"]):
    try:
        print(knarr.run({image!r}, words, network={network!r}, publish=["127.0.0.1::80"]).exit_code)
    except KnarrError as error:
        print(type(error).__name__)
import shutil, knarr.engine.networks as networks
broken = os.path.join(os.environ["HOME"], {network!r})
with open(broken, "w") as file:
    file.write("#!/bin/sh\\necho nothing works >&2\\nexit 7\\n")
os.chmod(broken, 0o755)
networks.find = lambda kind: broken
try:
    knarr.run({image!r}, ["true"], network={network!r})
except KnarrError as error:
    print(error)
""",
    )
    assert said.splitlines() == ["CommandNotFound", "3", f"the network {network} is not supported: nothing works"]


def test_what_is_told_of_it(person: Person, image: str) -> None:
    """``ps``, ``inspect``, ``port`` and ``info``; from asyncio; what a bundle and a busy port are told."""
    if person.kind == "nobody-subids":
        pytest.skip("as the other ordinary user")
    need("slirp4netns")
    need("pasta")
    said = does(
        on_own_machine(person),
        f"""
import asyncio, json
image = {image!r}
base = [sys.executable, "-m", "knarr.cli.main"]
def knarr_does(*words):
    return subprocess.run([*base, *words], capture_output=True, text=True)
async def main():
    words = ["sh", "-c", "echo yes > /tmp/index.html; exec busybox httpd -f -p 80 -h /tmp"]
    publish = ["127.0.0.1::80", "127.0.0.1:0081-0082:81-82"]
    options = dict(network="private", publish=publish, name="web")
    async with knarr.aio.Container(image, words, **options) as box:
        ip, port = box.ports["80/tcp"]
        print(until(lambda: get(port, ip)), box.ports["82/tcp"])
        print(knarr_does("port", "web", "80").stdout.strip() == f"127.0.0.1:{{port}}")
        print(knarr_does("port", "web").stdout.splitlines()[1:])
        print(knarr_does("port", "web", "99").stderr.strip())
        print(knarr_does("ps", "--format", "{{{{.Network}}}} {{{{.Ports}}}}").stdout.strip().replace(str(port), "PORT"))
        host = json.loads(knarr_does("inspect", "--format", "{{{{json .HostConfig}}}}", "web").stdout)
        print(host["NetworkMode"], host["PortBindings"]["81/tcp"])
        print(knarr_does("run", "--rm", "--network", "pasta", "-p", f"127.0.0.1:{{port}}:1", image).stderr.strip()
              .replace(str(port), "PORT"))
    print("slirp4netns" in json.loads(knarr_does("info", "--format", "json").stdout)["Host"]["Networks"])
    print(knarr_does("bundle", "--network", "private", image, "b").stderr.strip())
    print((await knarr.aio.run(image, ["true"], network="slirp4netns")).exit_code)
asyncio.run(main())
""",
    )
    assert said.splitlines() == [
        "b'yes\\n' ('127.0.0.1', 82)",
        "True",
        "['81/tcp -> 127.0.0.1:81', '82/tcp -> 127.0.0.1:82']",
        "knarr port: published port 99/tcp of web does not exist",
        "slirp4netns 127.0.0.1:PORT->80/tcp, 127.0.0.1:81->81/tcp, 127.0.0.1:82->82/tcp",
        "slirp4netns [{'HostIp': '127.0.0.1', 'HostPort': '81'}]",
        "knarr run: port 127.0.0.1:PORT/tcp is in use by another program",
        "True",
        "knarr bundle: network 'private': a bundle says none or host (whoever runs the bundle makes its network)",
        "0",
    ], said
