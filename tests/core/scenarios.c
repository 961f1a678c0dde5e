/* One interleaving each, made on purpose: a step of the core runs another participant's part.
 *
 *   scenarios NAME
 *
 * Sender and writers live in one process, each with its own mapping. Inside an append, MP_STEP calls
 * `meanwhile` once when it comes to `at_step`: whatever runs there happens while that writer is
 * stopped at that step. Exit status 1, with the line, where something is not as it must be.
 */
#include "scenario.h"

static uint32_t cycle_slot;

static void cycle(uint32_t partition) {
    struct mp_place place;
    CHECK(put(1, partition, 10, &place) == MP_DONE);
    CHECK(take(partition, &cycle_slot) == 1);
    CHECK(mp_release(&sender, cycle_slot));
}

/* --- compression */

static void compression_begun_after_the_batch_was_released(void) {
    struct mp_place place;
    open_pool(4, 1000);
    CHECK(put(0, 0, 2000, &place) == MP_DONE && place.sealed_count == 1 && !place.sealed[0].ours);
    uint32_t slot;
    CHECK(take(0, &slot) == 1);
    CHECK(mp_release(&sender, slot)); /* expired, say, before anybody compressed it */
    CHECK(!mp_compress_begin(&writer[0], place.sealed[0]));
    check_all_free(4);
}

static void who_fills_a_batch_compresses_it_before_anybody_is_told(void) {
    struct mp_place place;
    open_pool(4, 1000);
    sender.region.ctl->compress = 1;
    CHECK(put(0, 0, 10, &place) == MP_DONE && place.sealed_count == 0);
    CHECK(mp_take_dirty(&sender, 0) == 1); /* as it was opened */
    CHECK(mp_sleep_begin(&sender, (uint64_t)mp_now_ns() / 1000 + 1000000));
    const uint64_t sleep = atomic_load(&sender.region.pool->wake);
    CHECK(put(0, 0, 900, &place) == MP_DONE && place.sealed_count == 1 && place.sealed[0].ours);
    CHECK(was_woken() && mp_take_dirty(&sender, 0) == 1);
    CHECK(sleep && !atomic_load(&sender.region.pool->wake));
    uint32_t slot, owner, first, bytes;
    CHECK(take(0, &slot) == 2);
    CHECK(mp_compressed(&sender, slot, &owner, &first, &bytes) == MP_C_BUSY && owner == 1);
    /* The same of one that had no room, and so was sealed for the next. */
    CHECK(put(1, 1, 300, &place) == MP_DONE && place.sealed_count == 0);
    CHECK(put(0, 1, 800, &place) == MP_DONE && place.sealed_count == 2);
    CHECK(place.sealed[0].ours && place.sealed[1].ours && place.sealed[1].slot == place.slot);
    CHECK(place.sealed[0].slot != place.slot);
    mp_compress_abandon(&writer[0], place.sealed[0]);
    CHECK(mp_compressed(&sender, place.sealed[0].slot, &owner, &first, &bytes) == MP_C_NONE);
}

static void a_batch_is_kept_while_its_worker_compresses_it(void) {
    struct mp_place place;
    open_pool(4, 1000);
    sender.region.ctl->compress = 1;
    CHECK(put(0, 0, 2000, &place) == MP_DONE && place.sealed[0].ours);
    uint32_t slot;
    CHECK(take(0, &slot) == 1);
    CHECK(mp_take_compression(&sender, slot));
    CHECK(!mp_release(&sender, slot));
    CHECK(mp_retry_quarantine(&sender) == 1 && mp_free_slots(&sender) == 3);
    static const uint8_t output[20000];
    CHECK(!mp_compress_end(&writer[0], place.sealed[0], output, sizeof output));
    check_all_free(4);
}

static void a_batch_of_a_dead_compressor_is_given_back(void) {
    struct mp_place place;
    open_pool(4, 1000);
    sender.region.ctl->compress = 1;
    CHECK(put(0, 0, 2000, &place) == MP_DONE && place.sealed[0].ours);
    uint32_t slot;
    CHECK(take(0, &slot) == 1);
    CHECK(!mp_release(&sender, slot));
    CHECK(!mp_owner_reusable(&sender, 1));
    sender.alive[1] = 0;
    mp_reap(&sender, 1);
    check_all_free(4);
    CHECK(mp_owner_reusable(&sender, 1));
}

static void output_of_a_worker_is_given_back_with_its_batch(void) {
    struct mp_place place;
    open_pool(6, 1000);
    sender.region.ctl->compress = 1;
    CHECK(put(0, 0, 2000, &place) == MP_DONE && place.sealed[0].ours);
    static const uint8_t output[40000];
    CHECK(mp_compress_end(&writer[0], place.sealed[0], output, sizeof output));
    CHECK(mp_free_slots(&sender) == 2);
    sender.alive[1] = 0;
    uint32_t slot;
    CHECK(take(0, &slot) == 1);
    CHECK(mp_reap(&sender, 1) == 0); /* the batch counts its output */
    CHECK(mp_release(&sender, slot));
    check_all_free(6);
}

static void compression_of_a_batch_whose_generation_came_round(void) {
    struct mp_place old, open;
    open_pool(1, 1000);
    CHECK(put(0, 0, 2000, &old) == MP_DONE && old.sealed_count == 1);
    uint32_t slot;
    CHECK(take(0, &slot) == 1 && mp_release(&sender, slot));
    for (int i = 1; i < GENERATIONS; i++) cycle(1);
    CHECK(put(1, 1, 10, &open) == MP_DONE && open.slot == old.sealed[0].slot);
    CHECK(mp_gen(atomic_load(&sender.region.slot[0].word)) == old.sealed[0].gen);
    CHECK(!mp_compress_begin(&writer[0], old.sealed[0])); /* it is open, and takes records */
    CHECK(put(1, 1, 10, &open) == MP_DONE && open.index == 1);
    CHECK(take(1, &slot) == 2 && mp_release(&sender, slot));
    check_all_free(1);
}

static struct mp_sealed rightful;

static void walk_and_release(void) {
    uint32_t slot;
    CHECK(take(1, &slot) == 1 && !mp_release(&sender, slot)); /* a living worker has BUSY */
}

static void begin_too_late(void) { CHECK(!mp_compress_begin(&writer[1], rightful)); }

static void compression_begun_while_its_batch_is_being_released(void) {
    struct mp_place old, full;
    open_pool(1, 1000);
    CHECK(put(0, 0, 2000, &old) == MP_DONE && old.sealed_count == 1);
    uint32_t slot;
    CHECK(take(0, &slot) == 1 && mp_release(&sender, slot));
    for (int i = 1; i < GENERATIONS; i++) cycle(1);
    CHECK(put(1, 1, 2000, &full) == MP_DONE && full.sealed_count == 1);
    rightful = full.sealed[0];
    CHECK(rightful.slot == old.sealed[0].slot && rightful.gen == old.sealed[0].gen);
    stop_at(28, walk_and_release); /* it has BUSY, of a batch that is not its own */
    CHECK(!mp_compress_begin(&writer[0], old.sealed[0]) && at_step == 0);
    stop_at(41, begin_too_late); /* the word shows NONE again */
    CHECK(mp_retry_quarantine(&sender) == 0 && at_step == 0);
    check_all_free(1);
}

/* --- append */

static void recycle_to_the_same_word(void) {
    CHECK(take(0, &cycle_slot) == 1 && cycle_slot == 0 && mp_release(&sender, 0));
    for (int i = 1; i < GENERATIONS; i++) cycle(1);
    struct mp_place place;
    CHECK(put(1, 1, 10, &place) == MP_DONE && place.slot == 0);
}

static void a_writer_stopped_until_its_word_came_round_writes_nothing_there(void) {
    struct mp_place place;
    open_pool(2, 1000);
    CHECK(put(1, 0, 10, &place) == MP_DONE && place.slot == 0);
    stop_at(8, recycle_to_the_same_word);
    CHECK(put(0, 0, 10, &place) == MP_DONE);
    CHECK(at_step == 0 && writer[0].stale == 1);
    CHECK(place.slot == 1 && place.index == 0);
    uint32_t slot;
    CHECK(take(1, &slot) == 1 && slot == 0 && mp_release(&sender, slot));
    CHECK(take(0, &slot) == 1 && slot == 1 && mp_release(&sender, slot));
    check_all_free(2);
}

static uint32_t lent;

static void seal_walk_and_release(void) {
    CHECK(take(0, &lent) == 1);
    CHECK(!mp_release(&sender, lent)); /* its writer lives */
    struct mp_place place;
    CHECK(put(1, 0, 10, &place) == MP_DONE && place.slot != lent);
}

static void a_commit_that_lost_goes_to_the_next_batch(void) {
    struct mp_place place;
    open_pool(8, 100000);
    for (int step = 9; step <= 13; step += 2) { /* owned; about to write; about to commit */
        CHECK(put(1, 0, 10, &place) == MP_DONE);
        const uint32_t first = place.slot;
        const uint64_t lost = writer[0].lost_commits;
        stop_at(step, seal_walk_and_release);
        CHECK(put(0, 0, 30000, &place) == MP_DONE);
        CHECK(at_step == 0 && lent == first && writer[0].lost_commits == lost + 1);
        CHECK(place.slot != first && place.index == 1);
        CHECK(mp_retry_quarantine(&sender) == 0);
        uint32_t slot;
        CHECK(take(0, &slot) == 2 && mp_release(&sender, slot));
        check_all_free(8);
    }
}

static void a_writer_that_never_acknowledges_keeps_the_slot_until_it_is_dead(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(1, 0, 10, &place) == MP_DONE);
    mp_a64 *word = &sender.region.slot[place.slot].word;
    atomic_fetch_or(word, mp_own(1)); /* T3, and then it is stopped */
    CHECK(take(0, &lent) == 1);
    CHECK(!mp_release(&sender, lent));
    for (int i = 0; i < 3; i++) CHECK(mp_retry_quarantine(&sender) == 1);
    CHECK(!mp_owner_reusable(&sender, 1));
    sender.alive[1] = 0;
    mp_reap(&sender, 1);
    check_all_free(4);
    CHECK(mp_owner_reusable(&sender, 1));
}

static void other_opens_the_batch(void) {
    struct mp_place place;
    CHECK(put(1, 0, 10, &place) == MP_DONE && place.index == 0);
}

static void a_link_that_lost_appends_to_the_batch_that_won(void) {
    struct mp_place place;
    open_pool(8, 100000);
    stop_at(15, other_opens_the_batch);
    CHECK(put(0, 0, 20000, &place) == MP_DONE);
    CHECK(at_step == 0 && place.index == 1 && writer[0].stash == MP_NONE);
    CHECK(mp_free_slots(&sender) == 6);
    uint32_t slot;
    CHECK(take(0, &slot) == 2 && mp_release(&sender, slot));
    check_all_free(8);
}

static void an_empty_batch_of_a_living_owner_is_not_sealed(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(0, 0, 10, &place) == MP_DONE);
    /* As between link and commit. */
    mp_a64 *word = &sender.region.slot[place.slot].word;
    const uint64_t committed = atomic_load(word);
    atomic_store(word, (committed & (MP_LIVE | MP_GEN_MASK)) | mp_own(1));
    uint32_t found[4];
    uint64_t seq;
    CHECK(mp_new_batches(&sender, 0, found, &seq) == 1 && !mp_seal(&sender, found[0]));
    sender.alive[1] = 0;
    CHECK(mp_reap(&sender, 1) == 0); /* linked: it is the sender's to release */
    CHECK(mp_seal(&sender, found[0]) && mp_release(&sender, found[0]));
    check_all_free(4);
}

/* --- memory waiters */

static void slots_put_by_for_a_waiter_that_gave_up_come_back(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(1, 0, 20000, &place) == MP_DONE);
    mp_wait_begin(&writer[0], 4);
    CHECK(mp_grant(&sender) == 0 && mp_free_slots(&sender) == 0);
    CHECK(!mp_wait_end(&writer[0]));
    CHECK(mp_waiters(&sender) == 0);
    CHECK(mp_free_slots(&sender) == 2);
}

static void a_second_wait_of_the_same_owner_is_not_slept_over(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(1, 0, 20000, &place) == MP_DONE);
    mp_wait_begin(&writer[0], 4);
    CHECK(mp_grant(&sender) == 0);
    CHECK(!mp_wait_end(&writer[0]));
    mp_wait_begin(&writer[0], 1); /* the sender is awake: nothing is written to the eventfd */
    (void)mp_take_dirty(&sender, 0);
    CHECK(!mp_sleep_begin(&sender, 1000000)); /* it has served it instead */
    CHECK(mp_wait_over(&writer[0]) && mp_wait_end(&writer[0]));
    mp_drop_stash(&writer[0]);
    CHECK(mp_free_slots(&sender) == 2);
}

static void a_waiter_that_gives_up_lets_the_next_one_be_served(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(3, 0, 20000, &place) == MP_DONE);
    (void)mp_take_dirty(&sender, 0);
    mp_wait_begin(&writer[0], 4);
    mp_wait_begin(&writer[1], 1);
    CHECK(mp_grant(&sender) == 0); /* nobody overtakes the first one */
    while (was_woken()) {
    }
    CHECK(mp_sleep_begin(&sender, (uint64_t)mp_now_ns() / 1000 + 1000000));
    CHECK(!mp_wait_end(&writer[0]));
    CHECK(was_woken());
    mp_sleep_end(&sender);
    CHECK(mp_grant(&sender) == 1 && !mp_wait_end(&writer[0]) && mp_wait_end(&writer[1]));
    mp_drop_stash(&writer[1]);
    CHECK(mp_waiters(&sender) == 0 && mp_free_slots(&sender) == 2);
}

static void memory_given_back_between_look_and_sleep_is_granted(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(3, 0, 20000, &place) == MP_DONE);
    (void)mp_take_dirty(&sender, 0);
    mp_wait_begin(&writer[0], 2);
    CHECK(mp_grant(&sender) == 1 && mp_wait_end(&writer[0]));
    mp_wait_begin(&writer[1], 1);
    CHECK(mp_grant(&sender) == 0);
    mp_drop_stash(&writer[0]); /* the sender is awake: nothing is written to the eventfd */
    CHECK(!mp_sleep_begin(&sender, 1000000));
    CHECK(mp_wait_over(&writer[1]) && mp_wait_end(&writer[1]));
    mp_drop_stash(&writer[1]);
    CHECK(mp_waiters(&sender) == 0 && mp_free_slots(&sender) == 2);
}

static void waiters_are_served_in_order_of_arrival_and_nobody_barges(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(3, 0, 60000, &place) == MP_DONE && mp_free_slots(&sender) == 0);
    CHECK(put(2, 1, 10, &place) == MP_NO_MEMORY && place.units == 1);
    static const int order[] = {2, 0, 1};
    for (int i = 0; i < 3; i++) mp_wait_begin(&writer[order[i]], i == 0 ? 3 : 1);
    CHECK(mp_grant(&sender) == 0);
    uint32_t slot;
    CHECK(take(0, &slot) == 1 && mp_release(&sender, slot));
    CHECK(put(3, 2, 10, &place) == MP_NO_MEMORY); /* four slots are free, three writers wait */
    CHECK(mp_grant(&sender) == 2);
    CHECK(mp_wait_end(&writer[2]) && mp_wait_end(&writer[0]) && !mp_wait_over(&writer[1]));
    for (int i = 2; i >= 0; i -= 2) mp_drop_stash(&writer[i]);
    CHECK(mp_grant(&sender) == 1 && mp_wait_end(&writer[1]));
    mp_drop_stash(&writer[1]);
    check_all_free(4);
}

static void a_writer_that_was_served_and_has_not_run_yet_stops_nobody(void) {
    struct mp_place place;
    open_pool(8, 100000);
    CHECK(put(3, 0, 90000, &place) == MP_DONE && mp_free_slots(&sender) == 2);
    CHECK(put(0, 1, 30000, &place) == MP_DONE && mp_free_slots(&sender) == 0);
    CHECK(put(0, 1, 20000, &place) == MP_NO_MEMORY);
    mp_wait_begin(&writer[0], 1);
    mp_wait_begin(&writer[1], 1);
    uint32_t slot;
    CHECK(take(0, &slot) == 1 && mp_release(&sender, slot));
    CHECK(mp_grant(&sender) == 2 && mp_wait_end(&writer[0]));
    CHECK(put(0, 1, 40000, &place) == MP_DONE && place.index == 1); /* writer 1 sleeps still */
    CHECK(mp_wait_end(&writer[1]));
    mp_drop_stash(&writer[1]);
    CHECK(take(1, &slot) == 2 && mp_release(&sender, slot));
    check_all_free(8);
}

static void a_batch_that_found_no_memory_grows_by_what_is_granted(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(0, 0, 10, &place) == MP_DONE && put(1, 1, 40000, &place) == MP_DONE);
    CHECK(mp_free_slots(&sender) == 0);
    CHECK(put(0, 0, 20000, &place) == MP_NO_MEMORY && place.units == 2);
    CHECK(place.sealed_count == 0);
    mp_wait_begin(&writer[0], 2);
    uint32_t slot;
    CHECK(take(1, &slot) == 1 && mp_release(&sender, slot));
    CHECK(mp_grant(&sender) == 1 && mp_wait_end(&writer[0]));
    CHECK(put(0, 0, 20000, &place) == MP_DONE && place.index == 1);
    CHECK(take(0, &slot) == 2 && mp_release(&sender, slot));
    check_all_free(4);
}

static void what_was_granted_to_the_dead_comes_back(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(3, 0, 20000, &place) == MP_DONE);
    mp_wait_begin(&writer[0], 3); /* dies with two slots put by */
    mp_wait_begin(&writer[1], 2); /* dies with its grant untouched */
    CHECK(mp_grant(&sender) == 0);
    sender.alive[1] = 0;
    CHECK(mp_reap(&sender, 1) == 2);
    CHECK(mp_grant(&sender) == 1 && mp_free_slots(&sender) == 0);
    sender.alive[2] = 0;
    CHECK(mp_reap(&sender, 2) == 2);
    CHECK(mp_waiters(&sender) == 0 && mp_free_slots(&sender) == 2);
    CHECK(mp_owner_reusable(&sender, 1) && mp_owner_reusable(&sender, 2));
}

static void a_grant_that_was_not_used_goes_back_before_the_next_wait(void) {
    open_pool(4, 100000);
    mp_wait_begin(&writer[0], 3);
    CHECK(mp_grant(&sender) == 1 && mp_wait_end(&writer[0]));
    mp_wait_begin(&writer[0], 2);
    CHECK(mp_grant(&sender) == 1 && mp_wait_end(&writer[0]));
    mp_drop_stash(&writer[0]);
    check_all_free(4);
}

static void records_that_may_roam_leave_a_full_batch_to_the_sender(void) {
    static const uint8_t value[600];
    const struct mp_record record = {.value = value, .value_bytes = sizeof value, .key_bytes = -1};
    const struct mp_record *list = &record;
    struct mp_place place;
    open_pool(4, 2000); /* in the end a small record would have room, and one more of 600 B not */
    CHECK(put(0, 0, 600, &place) == MP_DONE && put(0, 0, 600, &place) == MP_DONE);
    CHECK(mp_take_dirty(&sender, 0) == 1);
    CHECK(put(0, 0, 200, &place) == MP_DONE && place.sealed_count == 0);
    mp_wait_begin(&writer[0], 2);
    CHECK(mp_grant(&sender) == 1 && mp_wait_end(&writer[0]));
    CHECK(mp_append_run(&writer[0], 0, &list, 1, 1, &place) == MP_FULL);
    CHECK(place.sealed_count == 1 && mp_take_dirty(&sender, 0) == 1);
    CHECK(writer[0].stash != MP_NONE && mp_free_slots(&sender) == 1);
    /* Elsewhere it uses what it was granted; here nothing was opened behind the full batch. */
    CHECK(mp_append_run(&writer[0], 1, &list, 1, 1, &place) == MP_DONE && place.index == 0);
    CHECK(writer[0].stash == MP_NONE && mp_free_slots(&sender) == 2);
    CHECK(take(0, NULL) == 3 && take(1, NULL) == 1);
    /* The batch is full and sealed by somebody else: then the next one is opened. */
    CHECK(mp_append_run(&writer[0], 0, &list, 1, 1, &place) == MP_DONE && place.index == 0);
}

static void kept_by(void) {
    /* Writer 0 has taken the bit of a slot and stands before its word: it is found again. */
    CHECK(mp_free_slots(&sender) == 3);
    CHECK(mp_reap(&sender, 1) == 0);
    CHECK(mp_free_slots(&sender) == 4);
}

static void a_slot_whose_bit_died_with_its_claimer_is_found_by_the_reaper(void) {
    struct mp_place place;
    open_pool(4, 1000);
    stop_at(1, kept_by);
    CHECK(put(1, 0, 10, &place) == MP_DONE && at_step == 0);
    /* The claim went on here, and left a bit of a taken slot: whoever finds it passes by. */
    CHECK(put(1, 1, 10, &place) == MP_DONE);
    CHECK(put(1, 2, 20000, &place) == MP_DONE);
    CHECK(put(1, 1, 2000, &place) == MP_NO_MEMORY && mp_free_slots(&sender) == 0);
}

static void leave(void) { CHECK(!mp_wait_end(&writer[0])); }

static void a_timeout_that_races_the_grant_keeps_nothing(void) {
    open_pool(4, 100000);
    mp_wait_begin(&writer[0], 2);
    stop_at(43, leave); /* between the look and the grant */
    CHECK(mp_grant(&sender) == 0 && at_step == 0);
    check_all_free(4);
    mp_wait_begin(&writer[0], 2);
    CHECK(mp_grant(&sender) == 1);
    CHECK(mp_wait_end(&writer[0])); /* at its deadline, but granted: it has the memory */
    mp_drop_stash(&writer[0]);
    check_all_free(4);
}

static void bits_of_slots_that_are_not_there_are_nobodys(void) {
    struct mp_place place;
    open_pool(4, 100000);
    atomic_fetch_or(&sender.region.free[0], ~UINT64_C(0) << 4); /* by a broken worker */
    CHECK(mp_free_slots(&sender) == 4);
    CHECK(put(0, 0, 60000, &place) == MP_DONE && mp_free_slots(&sender) == 0);
    CHECK(put(1, 1, 100, &place) == MP_NO_MEMORY);
}

static const struct scenario scenarios[] = {
    SCENARIO(bits_of_slots_that_are_not_there_are_nobodys),
    SCENARIO(compression_begun_after_the_batch_was_released),
    SCENARIO(who_fills_a_batch_compresses_it_before_anybody_is_told),
    SCENARIO(a_batch_is_kept_while_its_worker_compresses_it),
    SCENARIO(a_batch_of_a_dead_compressor_is_given_back),
    SCENARIO(output_of_a_worker_is_given_back_with_its_batch),
    SCENARIO(compression_of_a_batch_whose_generation_came_round),
    SCENARIO(compression_begun_while_its_batch_is_being_released),
    SCENARIO(a_writer_stopped_until_its_word_came_round_writes_nothing_there),
    SCENARIO(a_commit_that_lost_goes_to_the_next_batch),
    SCENARIO(a_writer_that_never_acknowledges_keeps_the_slot_until_it_is_dead),
    SCENARIO(a_link_that_lost_appends_to_the_batch_that_won),
    SCENARIO(an_empty_batch_of_a_living_owner_is_not_sealed),
    SCENARIO(slots_put_by_for_a_waiter_that_gave_up_come_back),
    SCENARIO(a_second_wait_of_the_same_owner_is_not_slept_over),
    SCENARIO(a_waiter_that_gives_up_lets_the_next_one_be_served),
    SCENARIO(memory_given_back_between_look_and_sleep_is_granted),
    SCENARIO(waiters_are_served_in_order_of_arrival_and_nobody_barges),
    SCENARIO(a_writer_that_was_served_and_has_not_run_yet_stops_nobody),
    SCENARIO(a_batch_that_found_no_memory_grows_by_what_is_granted),
    SCENARIO(what_was_granted_to_the_dead_comes_back),
    SCENARIO(a_grant_that_was_not_used_goes_back_before_the_next_wait),
    SCENARIO(a_timeout_that_races_the_grant_keeps_nothing),
    SCENARIO(records_that_may_roam_leave_a_full_batch_to_the_sender),
    SCENARIO(a_slot_whose_bit_died_with_its_claimer_is_found_by_the_reaper),
};

int main(int argc, char **argv) {
    return run_scenario(scenarios, sizeof scenarios / sizeof *scenarios, argc, argv);
}
