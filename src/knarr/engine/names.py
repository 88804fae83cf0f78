"""Names for containers that nobody named: an adjective and something seen from a ship's rail."""

from __future__ import annotations

import os

_ADJECTIVES = (
    "able amber ample ashen azure bold brave brief bright brisk broad calm candid clear clever cool cosy crisp "
    "deft dry eager early earnest easy even fair fast fine firm fleet fond frank free fresh frosty gentle glad "
    "golden good grand green happy hardy hazy honest humble icy jolly keen kind late light lively long loyal "
    "lucid lucky mellow merry mild misty modest neat nimble noble northern open pale patient plain polar proud "
    "quick quiet rapid ready rosy round salty sandy serene sharp silent silver simple sleek slow smooth snowy "
    "snug soft sound southern spry stately steady still stout sunny sure swift tall tidal tidy true upright vast "
    "vivid warm wary western white wide wild windy wise young"
)
_NOUNS = (
    "albatross anchor auk bark barnacle bay beacon bight boom bow breaker breeze brig buoy cable cape capstan "
    "cod compass coral cormorant cove crane crest current curlew cutter deck delta dinghy dolphin dory drift "
    "eider fathom fjord foam frigate fulmar galley gannet grebe gull gunwale halyard harbour haven heron herring "
    "hull iceberg inlet islet jetty keel kelp ketch kittiwake knot lagoon lantern ledge limpet lobster longboat "
    "lugger mackerel marlin mast moor mussel narwhal oar orca osprey otter oyster pebble pelican pennant petrel "
    "pier pilot plover porpoise puffin quay raft reef ridge rigging rudder sail salmon sandbar schooner seal "
    "sextant shanty shoal shore skerry skiff skua sloop sound spar spray starfish stern strait swell tern tide "
    "tiller timber trawler turnstone urchin voyage walrus wave whale wharf wherry"
)


def random_name() -> str:
    """Return a name such as ``brisk_puffin``; the caller takes another when it is taken."""
    words = [group.split() for group in (_ADJECTIVES, _NOUNS)]
    return "_".join(group[int.from_bytes(os.urandom(4), "big") % len(group)] for group in words)
