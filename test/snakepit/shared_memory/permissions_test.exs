defmodule Snakepit.SharedMemory.PermissionsTest do
  use ExUnit.Case, async: true

  alias Snakepit.SharedMemory.Permissions

  test "a map is the mode that it means, and back" do
    for {group, group_bits} <- [read_write: 6, read_only: 4, none: 0],
        {other, other_bits} <- [read_write: 6, read_only: 4, none: 0] do
      map = %{owner: :read_write, group: group, other: other}
      mode = 0o600 + group_bits * 8 + other_bits
      assert Permissions.mode(map) == {:ok, mode}
      assert Permissions.mode(mode) == {:ok, mode}
      assert Permissions.to_map(mode) == map
    end

    assert Permissions.mode(%{}) == {:ok, 0o600}
    assert Permissions.mode(%{group: :read_only}) == {:ok, 0o640}
  end

  test "every mode that is taken is shown as what it is; the message lists them all" do
    taken = for mode <- 0..0o7777, {:ok, ^mode} <- [Permissions.mode(mode)], do: mode
    assert length(taken) == 9
    for mode <- taken, do: assert(Permissions.mode(Permissions.to_map(mode)) == {:ok, mode})
    for mode <- taken, do: assert(Permissions.expected() =~ "0o" <> Integer.to_string(mode, 8))
  end

  test "what no region can have is refused" do
    for bad <- [
          %{owner: :read_only},
          %{owner: :none},
          %{group: :write},
          %{group: 6},
          %{user: :read_only},
          %{"group" => :read_only},
          0o000,
          0o400,
          0o602,
          0o622,
          0o610,
          0o645,
          0o700,
          0o777,
          0o1000,
          -1,
          nil,
          "0600",
          [group: :read_only],
          1..2
        ] do
      assert Permissions.mode(bad) == :error
    end
  end
end
