/* SPDX-License-Identifier: GPL-2.0-only
 *
 * The meter: admits, counts and cuts the traffic of neighbours in the kernel, whether or not the daemon runs.
 *
 *   xt_unpaid_up, _mesh, _lan   called by the gate (gate.py) in FORWARD, after the operator's filter: charge a packet,
 *                               and return 1 if nobody pays for it. Which of the three is called depends on the
 *                               interface by which the packet leaves: upstream, mesh or LAN
 *   xt_unknown, _mesh           called by the gate for a packet that nobody paid for: is it held for the daemon? The
 *                               second is for packets to the mesh
 *   xt_slowed                   called by the gate for a packet that nobody pays for, and that isn't held: may it pass by
 *                               UNPAID_RATE?
 *   xt_over_rate                called by the gate in INPUT: take room in a lane for a packet to a payment service on
 *                               this host, and return 1 if there is none
 *   xt_forged                   called by the gate in FORWARD, on a host that rewrites destinations: is the source of a
 *                               packet to the mesh an address of this host?
 *   xt_unpaid_from, _to         called by the gate in FORWARD for packets from and to the landlord's tunnel: charge a
 *                               tenant whose traffic is metered, and return 1 if it can't pay
 *   ngp_tc_out                  egress of mesh interfaces: meters our clients' downloads, and what we buy and send
 *   ngp_tc_in                   ingress of mesh interfaces: meters what we bought and receive
 *
 * Uploads are charged in FORWARD and not at the interface, since the router's own traffic doesn't pass FORWARD, and
 * packets that its firewall drops don't get that far. Downloads are charged at egress, where the frame names the next
 * hop, so the meter learns nothing from packets, and nothing can be spoofed. Compare-and-swap decides what passes
 * (charge.h), so no race between processors, top-ups and refunds can let too much pass.
 *
 * Build, for either byte order (setup.py does; atomics need -mcpu=v3):
 *   clang -O2 -g -target bpfel -mcpu=v3 -idirafter /usr/include/$(uname -m)-linux-gnu -c meter.bpf.c -o meter.bpfel.o
 */
#include "meter.h"
#include "packet.h"
#include "charge.h"
#include "entries.h"
#include "returns.h"
#include "sent.h"
#include "free.h"
#include "../token.h"
#include "lane.h"
#include "leaving.h"
#include "unpaid.h"

#define ERROR_INTERVAL_NS 20000000ull                         /* 50 ICMP errors a second to one neighbour */
#define ERROR_BURST_NS 2000000000ull                          /* 100 of them at once */
#define ASKED_AGAIN_NS 5000000000ull                          /* with UNPAID_RATE, when a destination is asked about again: */
#define ASKED_SELDOM_NS 30000000000ull                        /* for a neighbour that buys; for all others */
#define MOST_HOPS 255                                         /* the hop limit of our messages (GTSM, RFC 5082) */
#define TCP_HEADER_BYTES 20
#define TCP_RESET 4

enum way { TO_UPSTREAM, TO_MESH, TO_LAN };                    /* the class of the interface that a packet leaves by */

INLINE int wants_family(const struct config *config, const struct packet *p)
{
	return config->flags & (p->v6 ? IPV6 : IPV4);
}

/* --- the gate --- */

/* Did we buy a packet's source from the neighbour that sends the packet? Or, if the packet goes to a LAN of ours, is
 * the source that neighbour's own address? */
INLINE int is_bought(const struct config *config, const struct packet *p, enum way way)
{
	struct entry *entry = find_entry(config, p, CLIENT, remote(p));

	return entry && (entry->slot == OWN ? way == TO_LAN : contract_of(entry) != 0);
}

/* May a packet be an answer of a payment service behind a neighbour that sells to us, and that gives us a lane to the
 * service? Such answers pass the gate like returns. At egress they go only to the lane that asked. */
APART int is_answer(struct __sk_buff *skb, const struct config *config, const struct packet *p)
{
	struct neighbour *neighbour;

	if (!any_given(config, p) || !matches_free(skb, p, FROM_SERVICE))
		return 0;
	neighbour = find_neighbour(p);
	return neighbour && (neighbour->flags & SELLS_TO_US);
}

/* Does a packet answer a flow that another neighbour, or a LAN of ours, began? Then its sender doesn't pay. */
INLINE int is_anothers(const struct packet *p, const struct flow *answered, enum way way)
{
	__u32 payer;

	if (!find_payer(answered, &payer))
		return 0;
	return way == TO_LAN ? payer == OURS : payer != payer_of(find_neighbour(p));
}

/* Let a packet pass that was sent to an address of this host, and that a rule of the operator sends on to another host
 * (a forwarded port). It is free, like packets that end on this host; but if it is for a payment service, its lane
 * must have room. Not called for packets to the mesh: there such a packet may be an answer to masqueraded traffic. */
INLINE int passes_as_own(struct __sk_buff *skb, const struct config *config, const struct packet *p)
{
	struct flow answered = {};

	if (!p->error && is_of_host(skb, p, 1) && is_over_rate(config, p, p->bytes))
		return 0;
	read_answered(skb, p, &answered);
	remember(p, &answered, 0);
	return 1;
}

/* Charge a packet that a neighbour sends through us, unless it is free or its receiver pays for it at egress. Returns 0
 * if nobody pays. The first rule that fits decides; if its contract refuses the packet, no other rule is tried (but the
 * gate may still ask xt_slowed). A packet to an upstream interface is never a return: else a neighbour that sells to us
 * could send through our uplink for nothing. A packet whose destination was rewritten has two flows, one with the
 * address to which it was sent and one with the rewritten address; answers may belong to either. */
INLINE int paid(struct __sk_buff *skb, enum way way)
{
	const struct config *config = settings();
	struct flow onward = {}, answered = {};
	struct packet p = {};
	struct contract *contract;
	struct entry *entry;
	int given, wanted, rewritten = 0, returns;

	if (!config || !parse(skb, config, FORWARD, &p))
		return 0;
	if (way != TO_UPSTREAM)
		read_answered(skb, &p, &onward);
	if (config->flags & (REWRITES | GIFTS)) {                 /* few gateways have either: one test for both */
		rewritten = (config->flags & REWRITES) && restore_sent(skb, &p);
		if (any_given(config, &p)) {                      /* 1: free, or in its sender's lane */
			wanted = !any_free(config, &p) ? 0 : way == TO_UPSTREAM ? BY_DESTINATION : BY_DESTINATION | BY_SOURCE;
			given = gives(skb, &p, wanted | TO_SERVICE);
			if (given != NOT_GIVEN)
				return given == GIVEN;
		}
	}
	if (way != TO_UPSTREAM) {                                 /* 2: another payer's flow */
		if (rewritten)
			read_answered(skb, &p, &answered);
		returns = is_anothers(&p, &onward, way) || (rewritten && is_anothers(&p, &answered, way));
		if (is_led_return(&p, skb->ifindex, AT_GATE, returns))
			return way == TO_LAN || note_return(&p, skb->ifindex, &onward);
	}
	if (rewritten && way != TO_MESH && is_ours(&p, p.destination))
		return passes_as_own(skb, config, &p);
	entry = find_entry(config, &p, SERVER, p.destination);
	contract = senders_contract(entry, &p, way == TO_MESH);
	if (contract) {                                           /* 3: its sender's contract */
		if (!charge(contract, entry->slot, &p, TO, SERVER))
			return 0;
		if (way == TO_UPSTREAM)
			return 1;
		remember(&p, &onward, 0);
		if (rewritten)
			remember(&p, &answered, 0);
		return way == TO_LAN || note_paid(skb->ifindex, &onward);
	}
	if (way == TO_UPSTREAM || !(config->flags & BUYS))
		return 0;
	if (!is_bought(config, &p, way) && !is_answer(skb, config, &p)) /* 4: we bought its source from its sender */
		return 0;
	return way == TO_LAN || note_return(&p, skb->ifindex, &onward);
}

SEC("socket")
int xt_unpaid_up(struct __sk_buff *skb)
{
	return !paid(skb, TO_UPSTREAM);
}

SEC("socket")
int xt_unpaid_mesh(struct __sk_buff *skb)
{
	return !paid(skb, TO_MESH);
}

SEC("socket")
int xt_unpaid_lan(struct __sk_buff *skb)
{
	return !paid(skb, TO_LAN);
}

/* Hold a packet for the daemon. The daemon sees the packet with its rewritten destination, so store the address to
 * which it was sent in ngp_held_for. The daemon finds that entry by the packet's link and source and by some bytes
 * that a rewrite doesn't change: TCP's sequence numbers, or the bytes behind UDP's header, such as DNS's query id. */
APART int hold(struct __sk_buff *skb, const struct packet *p, int rewritten)
{
	struct held key = { .link = p->link };
	struct held_for sent = {};

	count(HELD);
	if (!rewritten)
		return 1;
	__builtin_memcpy(key.source, p->source, 16);
	__builtin_memcpy(sent.address, p->destination, 16);
	bpf_skb_load_bytes(skb, p->base + p->transport + (p->protocol == IPPROTO_TCP ? 4 : 8), key.mark, sizeof(key.mark));
	bpf_map_update_elem(&ngp_held_for, &key, &sent, BPF_ANY);
	return 1;
}

/* Does a packet that wasn't paid for belong to a lane? Then the lane has no room, and the packet is dropped: the rate
 * of payment services protects them. (To an address of ours go only packets to forwarded ports; see passes_as_own.) */
APART int is_for_full_lane(struct __sk_buff *skb, const struct config *config, const struct packet *p, int rewritten)
{
	if (rewritten && is_ours(p, p->destination))
		return 1;
	return any_given(config, p) && matches_free(skb, p, TO_SERVICE) && is_for_lane(p);
}

/* Decide whether the daemon sees a packet; if so, count it in ngp_asked, and hold it. The daemon sees a few packets to
 * each destination in each window, and new destinations only as fast as the neighbour's token bucket allows. Strangers
 * share one bucket, so made-up MACs gain nothing and cost known neighbours nothing. A destination enters the table
 * ngp_asked only if there was a token for it, so a flood can't push others' destinations out of the table. A packet for
 * a lane without room isn't shown to the daemon: else the neighbour would be offered a contract for what is free.
 * A contract that could pay has been granted, or its account credited, since the packet was refused: several routers buy
 * at once, and then the packet comes to each just when its contract does. The daemon sends it to the gate once more.
 * With UNPAID_RATE, a destination about which the daemon was asked isn't asked about again for some seconds, so that the
 * packets for which it found no payer can pass, and don't wait once more. */
INLINE int unknown(struct __sk_buff *skb, enum way way)
{
	const struct config *config = settings();
	struct neighbour *neighbour;
	struct contract *contract;
	struct packet p = {};
	struct asked key = {};
	struct asking *asking, fresh = { .packets = 1 };
	__u32 zero = 0;
	__u64 now, most, again_ns, *strangers;
	int taken, rewritten;

	if (!config || !parse(skb, config, FORWARD, &p))
		return 0;
	rewritten = (config->flags & REWRITES) && restore_sent(skb, &p);
	if (is_for_full_lane(skb, config, &p, rewritten))
		return 0;
	contract = senders_contract(find_entry(config, &p, SERVER, p.destination), &p, way == TO_MESH);
	if (contract && !could_pay(contract, &p))
		return 0;
	now = bpf_ktime_get_coarse_ns();
	neighbour = find_neighbour(&p);
	key.number = neighbour ? neighbour->number : 0;
	__builtin_memcpy(key.address, p.destination, 16);
	asking = bpf_map_lookup_elem(&ngp_asked, &key);
	if (asking && now - asking->since_ns < config->hold_window_ns) {
		most = neighbour && (neighbour->flags & HAS_PAID) ? config->hold_packets_paid : config->hold_packets;
		if (asking->packets >= most) {
			count(HELD_BEFORE);
			return 0;
		}
		__sync_fetch_and_add(&asking->packets, 1);
		return hold(skb, &p, rewritten);
	}
	again_ns = neighbour && (neighbour->flags & BUYS_FROM_US) ? ASKED_AGAIN_NS : ASKED_SELDOM_NS;
	if (asking && config->unpaid_kib_ns && now - asking->since_ns < again_ns)
		return 0;
	if (neighbour) {
		taken = take_token(&neighbour->ready_ns, config->neighbour_interval_ns, config->neighbour_burst_ns, now);
	} else {
		strangers = bpf_map_lookup_elem(&ngp_strangers, &zero);
		taken = strangers && take_token(strangers, config->stranger_interval_ns, config->stranger_burst_ns, now);
	}
	if (!taken) {
		count(OVER_RATE);
		return 0;
	}
	fresh.since_ns = now;
	bpf_map_update_elem(&ngp_asked, &key, &fresh, BPF_ANY);
	return hold(skb, &p, rewritten);
}

SEC("socket")
int xt_unknown(struct __sk_buff *skb)
{
	return unknown(skb, TO_UPSTREAM);
}

SEC("socket")
int xt_unknown_mesh(struct __sk_buff *skb)
{
	return unknown(skb, TO_MESH);
}

/* May a packet pass uncharged, by UNPAID_RATE? The gate asks only about packets that nobody pays for. */
SEC("socket")
int xt_slowed(struct __sk_buff *skb)
{
	const struct config *config = settings();
	struct packet p = {};
	int rewritten;

	if (!config || !config->unpaid_kib_ns || !parse(skb, config, FORWARD, &p))
		return 0;
	rewritten = (config->flags & REWRITES) && restore_sent(skb, &p);
	return !is_for_full_lane(skb, config, &p, rewritten) && has_unpaid_room(&p);
}

/* --- this host --- */

/* Take room in its neighbour's lane for a packet to a payment service on this host. Returns 1 if the lane has no room.
 * ICMP errors always pass: they go to the kernel, and path MTU discovery must work during a neighbour's flood. At
 * INPUT, fragments of IPv4 are already joined, but fragments of IPv6 aren't, and only the first of them shows a port.
 * So the first one must find room for the longest packet that fragments can make. So must a packet with more extension
 * headers than we follow: it may be for any port, and may be a first fragment. */
SEC("socket")
int xt_over_rate(struct __sk_buff *skb)
{
	const struct config *config = settings();
	struct packet p = {};
	int hides;

	if (!config || !parse(skb, config, FORWARD, &p) || p.error)
		return 0;
	hides = p.v6 && is_extension(p.protocol);
	if (!hides && !is_of_host(skb, &p, 1))
		return 0;
	return is_over_rate(config, &p, hides || p.goes_on ? LONGEST_BYTES : p.bytes);
}

/* --- forwarded to the mesh --- */

/* Does a forwarded packet have an address of this host as its source? Linux accepts such a packet over IPv6. It must be
 * dropped in FORWARD: at ngp_tc_out it would look like an answer of a forwarded port, whose source Linux has set to our
 * address by then. In FORWARD, such an answer still has the address of the host that sent it. */
SEC("socket")
int xt_forged(struct __sk_buff *skb)
{
	struct our key = { .v6 = skb->protocol == bpf_htons(ETH_P_IPV6) };
	long failed = key.v6 ? bpf_skb_load_bytes_relative(skb, 8, key.address, 16, BPF_HDR_START_NET)
			     : bpf_skb_load_bytes_relative(skb, 12, key.address, 4, BPF_HDR_START_NET);

	if (failed || !bpf_map_lookup_elem(&ngp_ours, &key))
		return 0;
	count(UNCOVERED);
	return 1;
}

/* --- the landlord's tunnel --- */

/* Can't a tenant pay for a packet that it sends (FROM its networks), or that is sent to it? Tenants that pay by time
 * alone have no entry. The tunnel admits no packet under another tenant's address, so the address names the payer. */
INLINE int unpaid_by_tenant(struct __sk_buff *skb, enum direction direction)
{
	const struct config *config = settings();
	struct contract *contract;
	struct packet p = {};
	struct entry *entry;

	if (!config || !parse(skb, config, TUNNEL, &p))
		return 1;
	entry = find_entry(config, &p, SERVER, direction == TO ? p.destination : p.source);
	if (!entry)
		return 0;
	contract = contract_of(entry);
	return !contract || !charge(contract, entry->slot, &p, direction, SERVER);
}

SEC("socket")
int xt_unpaid_from(struct __sk_buff *skb)
{
	return unpaid_by_tenant(skb, FROM);
}

SEC("socket")
int xt_unpaid_to(struct __sk_buff *skb)
{
	return unpaid_by_tenant(skb, TO);
}

/* --- the interfaces --- */

INLINE int is_link_local(const struct packet *p, const __u32 *address)
{
	return p->v6 && (address[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* Is a packet from one router to the other, and not forwarded? Then no server charges it, so no client counts it. */
INLINE int is_between_routers(const struct packet *p)
{
	return p->group || is_link_local(p, p->source) || is_link_local(p, p->destination);
}

/* Is a received packet a message of the neighbour's own daemon? Anybody can send packets to the port of our messages,
 * and a server charges those that it forwards. But a daemon sends with the highest hop limit, 255, and each router
 * lowers it. So a packet that still has 255 wasn't forwarded. */
APART int is_message(struct __sk_buff *skb, const struct config *config, const struct packet *p)
{
	__be16 ports[2];
	__u8 hops;

	return p->protocol == IPPROTO_UDP && read_ports(skb, p, ports) && ports[1] == config->link_port &&
	       !bpf_skb_load_bytes(skb, p->base + (p->v6 ? 7 : 8), &hops, 1) && hops == MOST_HOPS;
}

/* Count a packet under our own address, if we bought its destination. Only the destination tells whether the neighbour
 * forwards a packet. So a packet to an address of the neighbour that we don't know as its own may be counted, though
 * the neighbour doesn't bill it. */
INLINE int count_own(struct __sk_buff *skb, const struct config *config, const struct packet *p)
{
	struct entry *entry = find_entry(config, p, CLIENT, p->destination);
	struct contract *contract = contract_of(entry);

	if ((entry && entry->slot == OWN) || is_between_routers(p) || is_free(skb, config, p, BY_DESTINATION))
		return PASS;
	if (contract && charge(contract, entry->slot, p, TO, CLIENT))
		return PASS;
	return note_early(config, p, find_neighbour(p)); /* see `buy` */
}

/* Let a packet leave that this host itself sends, or that is an answer of a port that it forwards. The receiver pays
 * for neither. But behind a neighbour that sells to us, the packet is our purchase. */
APART int send_own(struct __sk_buff *skb, const struct config *config, const struct packet *p)
{
	if ((config->flags & OWN_SERVICES) && answers_over_rate(skb, config, p))
		return SHOT;
	return config->flags & BUYS ? count_own(skb, config, p) : PASS;
}

/* Did this host itself make a packet that has neither an incoming interface nor a socket?
 *
 * The kernel makes such packets: a tunnel's outer packets, SYN cookies, resets, and reports of group membership. They
 * have our address as their source, with two exceptions: a report of group membership may have the zero address; and a
 * REJECT resets a connection under the other end's address, with a segment that is nothing but a header.
 *
 * But some forwarded packets look the same. If Linux joins IPv6 fragments and has to cut the packet anew, the new
 * fragments have no incoming interface; and Linux accepts IPv6 packets that have our address as their source. So no
 * IPv6 fragment is taken for ours, nor a packet with more extension headers than we follow, since it may be a fragment.
 */
APART int is_made_here(struct __sk_buff *skb, const struct packet *p)
{
	__u8 flags;

	if (p->v6 && (p->goes_on || p->protocol == LATER_FRAGMENT || is_extension(p->protocol)))
		return 0;
	if (is_ours(p, p->source))
		return 1;
	if (p->group)
		return !(p->source[0] | p->source[1] | p->source[2] | p->source[3]);
	return p->protocol == IPPROTO_TCP && p->bytes == p->transport + TCP_HEADER_BYTES &&
	       !bpf_skb_load_bytes(skb, p->base + p->transport + 13, &flags, 1) && (flags & TCP_RESET);
}

/* Decide whether an ICMP error may go on to our client; one that is limited takes a token.
 *
 * Anybody can send an error about a client's connection without forging an address. The error is charged to the
 * client's contract, or carried for nothing if the connection is free. So errors that don't come from the destination
 * itself may be no longer than RFC 4443 allows, and may come no faster than a client needs that isn't attacked. (A
 * contract for a default route names no destination.)
 *
 * A forwarded error that has our own address as its source is forged, unless it is about a port of ours that we
 * forward. The client would take a forged one for an error of this router, and not count it. So it is refused. */
APART int allows_error(const struct config *config, const struct packet *p)
{
	struct neighbour *neighbour = find_neighbour(p);
	struct contract *contract;

	if (is_ours(p, p->source) && !is_ours(p, p->quoted))
		return 0;
	if (!neighbour || !(neighbour->flags & BUYS_FROM_US))
		return 1;
	contract = contract_of(find_entry(config, p, SERVER, p->source));
	if (contract && !is_for_default(contract))
		return 1;
	return p->bytes <= ERROR_BYTES &&
	       take_token(&neighbour->errors_ready_ns, ERROR_INTERVAL_NS, ERROR_BURST_NS, bpf_ktime_get_coarse_ns());
}

/* Is this a frame of a macvlan on top of the interface? Such frames also pass the hooks of the interface below, with
 * the macvlan's MAC as their source. */
APART int is_of_upper(struct __sk_buff *skb)
{
	struct link key = { .ifindex = skb->ifindex };
	__u16 mac[3];

	if (bpf_skb_load_bytes(skb, ETH_ALEN, mac, sizeof(mac)))
		return 0;
	key.mac_head = pair(mac[0], mac[1]);
	key.mac_tail_role = pair(mac[2], 0);
	return bpf_map_lookup_elem(&ngp_uppers, &key) != 0;
}

SEC("tc")
int ngp_tc_out(struct __sk_buff *skb)
{
	const struct config *config = settings();
	__u32 ingress_ifindex = skb->ingress_ifindex;
	struct packet p = {};
	int given, payer, by_socket = !ingress_ifindex && skb->sk;

	if (!config || is_tagged(skb) || ((config->flags & HAS_UPPERS) && is_of_upper(skb)))
		return PASS;
	if (by_socket && !(config->flags & (BUYS | OWN_SERVICES))) /* our own */
		return PASS;
	if (!parse(skb, config, EGRESS, &p) || !wants_family(config, &p))
		return PASS;
	if (by_socket || (!ingress_ifindex && is_made_here(skb, &p)))
		return send_own(skb, config, &p);
	if (p.group)
		return config->flags & SELLS ? refuse_uncovered() : PASS;
	if (p.error && (config->flags & SELLS) && !allows_error(config, &p)) {
		count_unsold(skb, &p);
		return refuse_uncovered();
	}
	if (any_given(config, &p)) {
		given = gives(skb, &p, (any_free(config, &p) ? free_by(&p, ingress_ifindex) : 0) | FROM_SERVICE);
		if (given != NOT_GIVEN)
			return given == GIVEN ? PASS : SHOT;
	}
	if (!(config->flags & SELLS))
		return buy(&p);
	payer = NEIGHBOUR_PAYS;                                   /* if ALONE: all from other interfaces is from upstream */
	if ((config->flags & (ALONE | REWRITES)) != ALONE || ingress_ifindex == skb->ifindex)
		payer = find_who_pays(skb, &p);
	if (payer == NEIGHBOUR_PAYS)
		return sell(skb, config, &p);
	if (payer == WE_PAY)
		return buy(&p);
	if (payer == NOBODY_PAYS)
		return passes_unpaid(skb, &p) ? PASS : refuse_uncovered();
	return payer == PASSES_AS_OWN ? send_own(skb, config, &p) : PASS;
}

SEC("tc")
int ngp_tc_in(struct __sk_buff *skb)
{
	const struct config *config = settings();
	struct contract *contract;
	struct packet p = {};
	struct entry *entry;

	if (!config || skb->pkt_type || is_tagged(skb))           /* only frames sent to us: PACKET_HOST is 0 */
		return PASS;
	if ((config->flags & (NOTHING_BOUGHT | REWRITES)) == NOTHING_BOUGHT) /* nothing to count or to note */
		return PASS;
	if (!parse(skb, config, INGRESS, &p) || !wants_family(config, &p))
		return PASS;
	if (config->flags & REWRITES)
		note_sent(skb, &p);
	if (!(config->flags & BUYS))
		return PASS;
	if (p.error) {                                            /* the neighbour didn't charge us for its own errors */
		entry = find_entry(config, &p, CLIENT, p.source);
		if (entry && entry->slot == OWN)
			return PASS;
	}
	entry = find_entry(config, &p, CLIENT, remote(&p));
	contract = contract_of(entry);
	if (contract && !is_between_routers(&p) && !is_message(skb, config, &p) && !is_free(skb, config, &p, BY_SOURCE))
		charge(contract, entry->slot, &p, FROM, CLIENT);
	return PASS;
}

char _license[] SEC("license") = "GPL";
