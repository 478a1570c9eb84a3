/* SPDX-License-Identifier: GPL-2.0-only
 *
 * The meter: admits, counts and cuts the traffic of neighbours in the kernel, whether or not the daemon lives.
 *
 *   xt_unpaid_up, _mesh, _lan   asked by the gate (gate.py), at FORWARD after the operator's own filter, by where a packet goes
 *   xt_unknown                  asked there about what nobody paid for: is it worth the daemon's time?
 *   xt_over_rate                asked by the gate at INPUT: for payment services on this host
 *   ngp_tc_out                  egress of mesh interfaces: downloads of those who buy from us; our purchases
 *   ngp_tc_in                   ingress of mesh interfaces: what we bought and received
 *
 * Uploads are charged at FORWARD and not at the card: there the router's own traffic and what its firewall drops are
 * already gone. Downloads are charged where the frame names the next hop, so nothing is learned from packets and nothing
 * can be spoofed. What passes is decided by compare-and-swap (charge.h); no processor, top-up or refund can make it too
 * much.
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

#define ERROR_INTERVAL_NS 20000000ull                         /* 50 a second to one neighbour */
#define ERROR_BURST_NS 2000000000ull                          /* 100 at once */

enum way { TO_UPSTREAM, TO_MESH, TO_LAN };                    /* the class of the interface that a packet leaves by */

INLINE int wants_family(const struct config *config, const struct packet *p)
{
	return config->flags & (p->v6 ? IPV6 : IPV4);
}

/* --- the gate --- */

/* Did we buy from its sender what a packet brings, or (towards our LAN) does the sender itself answer? */
INLINE int is_bought(const struct config *config, const struct packet *p, enum way way)
{
	struct entry *entry = find_entry(config, p, CLIENT, remote(p));

	return entry && (entry->slot == OWN ? way == TO_LAN : contract_of(entry) != 0);
}

/* A payment service may lie behind a neighbour that sells to us, who lets us through to it as we do others. Its answers
 * pass here like returns, to nobody but the lane that asked. */
APART int is_answer(struct __sk_buff *skb, const struct config *config, const struct packet *p)
{
	struct neighbour *neighbour;

	if (!any_given(config, p) || !matches_free(skb, p, FROM_SERVICE))
		return 0;
	neighbour = find_neighbour(p);
	return neighbour && (neighbour->flags & SELLS_TO_US);
}

/* Does a packet answer what another neighbour, or a LAN of ours, began? Then who sent it doesn't pay. */
INLINE int is_anothers(const struct packet *p, const struct flow *answered, enum way way)
{
	__u32 payer;

	if (!find_payer(answered, &payer))
		return 0;
	return way == TO_LAN ? payer == OURS : payer != payer_of(find_neighbour(p));
}

/* What is sent to this host's own address, and goes on to another host by a rule of the operator's (a forwarded port), is
 * free, as what ends here is; a payment service gets its lane's rate. Not towards the mesh, where such a packet may be an
 * answer that finds its way back through our address. */
APART int passes_as_own(struct __sk_buff *skb, const struct config *config, const struct packet *p)
{
	struct flow answered = {};

	if (!p->error && is_of_host(skb, p, 1) && is_over_rate(config, p, p->bytes))
		return 0;
	read_answered(skb, p, &answered);
	remember(p, &answered, 0);
	return 1;
}

/* Who pays for a packet that a neighbour sends through us? The first rule that fits decides; a contract that refuses
 * never falls through. Towards an upstream interface nothing is a return: a neighbour that sells to us can't send through
 * our uplink for nothing. A packet whose destination was rewritten has two flows, as it was sent and as it goes on, and
 * answers may come to either. Returns 0 where nobody pays. */
INLINE int paid(struct __sk_buff *skb, enum way way)
{
	const struct config *config = settings();
	struct flow onward = {}, answered = {};
	struct packet p = {};
	struct contract *contract;
	struct entry *entry;
	int given, wanted, rewritten, returns;

	if (!config || !parse(skb, config, FORWARD, &p))
		return 0;
	if (way != TO_UPSTREAM)
		read_answered(skb, &p, &onward);
	rewritten = (config->flags & REWRITES) && restore_sent(skb, &p);
	if (any_given(config, &p)) {                              /* 1: free, or at a lane's rate */
		wanted = !any_free(config, &p) ? 0 : way == TO_UPSTREAM ? BY_DESTINATION : BY_DESTINATION | BY_SOURCE;
		given = gives(skb, &p, wanted | TO_SERVICE);
		if (given != NOT_GIVEN)
			return given == GIVEN;
	}
	if (way != TO_UPSTREAM) {                                 /* 2: another payer's flow */
		if (rewritten)
			read_answered(skb, &p, &answered);
		returns = is_anothers(&p, &onward, way) || (rewritten && is_anothers(&p, &answered, way));
		if (is_led_return(&p, skb->ifindex, AT_GATE, returns))
			return way == TO_LAN || note_return(skb->ifindex, &onward);
	}
	if (rewritten && way != TO_MESH && is_ours(&p, p.destination))
		return passes_as_own(skb, config, &p);
	entry = find_entry(config, &p, SERVER, p.destination);
	contract = contract_of(entry);
	if (contract) {                                           /* 3: its own contract */
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
	if (!is_bought(config, &p, way) && !is_answer(skb, config, &p)) /* 4: a purchase of ours from its sender */
		return 0;
	return way == TO_LAN || note_return(skb->ifindex, &onward);
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

/* The daemon gets a packet as it goes on: tell it where it was sent. It is known again by some bytes that stay the same:
 * TCP's numbers, or what follows UDP's header, as DNS's number. */
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

/* Is it worth the daemon's time? A few packets of a destination, then nothing for a while; and no more destinations
 * than the neighbour's bucket allows. Strangers share one bucket, so made-up MACs gain nothing and cost others nothing;
 * only what passed its bucket enters the table of asked destinations, so a flood can't wash it out. What its lane has no
 * room for isn't negotiated about: it would be paid for. */
SEC("socket")
int xt_unknown(struct __sk_buff *skb)
{
	const struct config *config = settings();
	struct neighbour *neighbour;
	struct packet p = {};
	struct asked key = {};
	struct asking *asking, fresh = { .packets = 1 };
	__u32 zero = 0;
	__u64 now, most, *strangers;
	int taken, rewritten;

	if (!config || !parse(skb, config, FORWARD, &p))
		return 0;
	rewritten = (config->flags & REWRITES) && restore_sent(skb, &p);
	if ((rewritten && is_ours(&p, p.destination)) || contract_of(find_entry(config, &p, SERVER, p.destination)))
		return 0;
	if (any_given(config, &p) && matches_free(skb, &p, TO_SERVICE) && is_for_lane(&p))
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

/* --- this host --- */

/* ICMP errors go to the kernel, not to the service, whose path MTU must not suffer from its neighbour's flood. The kernel
 * puts IPv4's fragments together before; of IPv6's only the first one shows a port, and needs room for all that the others
 * may bring. Behind more extension headers than we follow any port may be, and such a first fragment. */
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

/* --- the interfaces --- */

INLINE int is_link_local(const struct packet *p, const __u32 *address)
{
	return p->v6 && (address[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* What two routers say to each other is not forwarding: no server charges it, so no client counts it. */
APART int is_between_routers(struct __sk_buff *skb, const struct config *config, const struct packet *p)
{
	__be16 ports[2];

	if (p->group || is_link_local(p, p->source) || is_link_local(p, p->destination))
		return 1;
	return p->protocol == IPPROTO_UDP && read_ports(skb, p, ports) && ports[1] == config->link_port;
}

INLINE int count_own(struct __sk_buff *skb, const struct config *config, const struct packet *p)
{
	struct entry *entry = find_entry(config, p, CLIENT, p->destination);
	struct contract *contract = contract_of(entry);

	if ((entry && entry->slot == OWN) || is_between_routers(skb, config, p) ||
	    is_free(skb, config, p, BY_DESTINATION))
		return PASS;
	if (!contract)
		return note_early(config, p);
	charge(contract, entry->slot, p, TO, CLIENT);
	return PASS;
}

/* Anybody can send an ICMP error about a connection of our client's, without forging an address, and have it charged to
 * the contract (or, if that is free, carried for nothing). So errors of others than the destination itself are no longer
 * than RFC 4443 allows, and no more than a client that is not attacked has use for. */
APART int allows_error(const struct config *config, const struct packet *p)
{
	struct neighbour *neighbour = find_neighbour(p);

	if (!neighbour || !(neighbour->flags & BUYS_FROM_US) || contract_of(find_entry(config, p, SERVER, p->source)))
		return 1;
	return p->bytes <= ERROR_BYTES &&
	       take_token(&neighbour->errors_ready_ns, ERROR_INTERVAL_NS, ERROR_BURST_NS, bpf_ktime_get_coarse_ns());
}

/* Frames of a macvlan pass the hooks of the interface that it stands on, from its own MAC; they are that macvlan's. */
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
	int given;

	if (!config || is_tagged(skb) || ((config->flags & HAS_UPPERS) && is_of_upper(skb)))
		return PASS;
	if (!ingress_ifindex && !(config->flags & (BUYS | OWN_SERVICES))) /* our own */
		return PASS;
	if (!parse(skb, config, EGRESS, &p) || !wants_family(config, &p))
		return PASS;
	if (!ingress_ifindex) {
		if ((config->flags & OWN_SERVICES) && answers_over_rate(skb, config, &p))
			return SHOT;
		return config->flags & BUYS ? count_own(skb, config, &p) : PASS;
	}
	if (p.group)
		return config->flags & SELLS ? refuse_uncovered() : PASS;
	if (p.error && (config->flags & SELLS) && !allows_error(config, &p))
		return refuse_uncovered();
	if (any_given(config, &p)) {
		given = gives(skb, &p, (any_free(config, &p) ? free_by(&p, ingress_ifindex) : 0) | FROM_SERVICE);
		if (given != NOT_GIVEN)
			return given == GIVEN ? PASS : SHOT;
	}
	if (!(config->flags & SELLS))
		return buy(&p);
	if ((config->flags & (ALONE | REWRITES)) == ALONE && ingress_ifindex != skb->ifindex)
		return sell(&p);                                 /* the commonest case: from upstream, without a look-up more */
	return leave(skb, &p);
}

SEC("tc")
int ngp_tc_in(struct __sk_buff *skb)
{
	const struct config *config = settings();
	struct contract *contract;
	struct packet p = {};
	struct entry *entry;

	if (!config || skb->pkt_type || is_tagged(skb))           /* only what is sent to us: PACKET_HOST is 0 */
		return PASS;
	if (!parse(skb, config, INGRESS, &p) || !wants_family(config, &p))
		return PASS;
	if (config->flags & REWRITES)
		note_sent(skb, &p);
	if (!(config->flags & BUYS))
		return PASS;
	if (p.error) {                                            /* the neighbour's own errors were not charged */
		entry = find_entry(config, &p, CLIENT, p.source);
		if (entry && entry->slot == OWN)
			return PASS;
	}
	entry = find_entry(config, &p, CLIENT, remote(&p));
	contract = contract_of(entry);
	if (contract && !is_between_routers(skb, config, &p) && !is_free(skb, config, &p, BY_SOURCE))
		charge(contract, entry->slot, &p, FROM, CLIENT);
	return PASS;
}

char _license[] SEC("license") = "GPL";
