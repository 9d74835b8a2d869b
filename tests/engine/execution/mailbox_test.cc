#include "engine/execution/mailbox.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>

namespace shoal {
namespace {

TEST(Mailbox, HandsOverInOrder) {
  Mailbox<int, 2> mailbox;
  for (int i = 0; i < 10; i += 2) {
    mailbox.Put(i);
    mailbox.Put(i + 1);
    EXPECT_EQ(mailbox.Take(), i);
    EXPECT_EQ(mailbox.Take(), i + 1);
  }
}

TEST(Mailbox, PassesValuesBetweenThreads) {
  constexpr int kRounds = 20'000;
  Mailbox<std::unique_ptr<int>, 2> there, back;
  std::jthread echo([&] {
    for (int i = 0; i < kRounds; ++i) back.Put(there.Take());
  });
  there.Put(std::make_unique<int>(0));
  for (int i = 0; i < kRounds; ++i) {
    if (i + 1 < kRounds) there.Put(std::make_unique<int>(i + 1));
    ASSERT_EQ(*back.Take(), i);
  }
}

TEST(MailboxDeathTest, RefusesMoreValuesThanSlots) {
  Mailbox<int, 2> mailbox;
  mailbox.Put(1);
  mailbox.Put(2);
  EXPECT_DEATH(mailbox.Put(3), "all 2 slots of the mailbox are full");
}

}  // namespace
}  // namespace shoal
