defmodule Snakepit.SharedMemory.ErrorCatalogueTest do
  use Snakepit.SharedMemory.Case, async: true

  alias Snakepit.SharedMemory.Error.Catalogue

  @classes ~w(allocation_failed mapping_failed permission_denied region_not_found
              memory_limit_exceeded platform_error security_violation corruption_detected
              cleanup_failed invalid_request value_unavailable not_available)a

  defp documented do
    text = File.read!("docs/errors.md")

    for [_, code, class, level, meaning, remedy] <-
          Regex.scan(~r/^\| `(\w+)` \| `(\w+)` \| (\w+) \| (.*?) \| (.*?) \|$/m, text) do
      {code, class, level, meaning, remedy}
    end
  end

  test "R8.1 docs/errors.md has every code, as the code knows it" do
    known =
      for row <- Catalogue.all() do
        level = if row.level, do: to_string(row.level), else: "no"
        {to_string(row.code), to_string(row.class), level, row.meaning, row.remedy}
      end

    assert documented() == known
  end

  test "the codes are those of the core and those of Elixir alone" do
    codes = Enum.map(Catalogue.all(), & &1.code)
    assert codes == Error.codes()
    native = Enum.map(Native.error_codes(), &String.to_existing_atom/1)

    assert Enum.sort(codes -- native) ==
             Enum.sort(~w(not_started disabled invalid_argument not_mapped not_referenced)a)

    assert native -- codes == []
  end

  test "every code has a class of the list, a sentence and a remedy" do
    for row <- Catalogue.all() do
      assert row == Catalogue.fetch(row.code)
      assert row.class in @classes
      assert Error.class(row.code) == row.class
      assert Error.class(Error.new(row.code, "x")) == row.class
      assert row.meaning =~ ~r/^[A-Z].*\.$/
      assert row.remedy =~ ~r/^[A-Z].*\.$/
      assert row.level in [nil, :debug, :info, :warning, :error]
    end
  end

  test "what the system refuses is classed by what was being done" do
    io = &Error.new(:io, "no", operation: &1)
    assert Error.class(io.(:allocate_region)) == :allocation_failed
    assert Error.class(io.(:map_region)) == :mapping_failed
    assert Error.class(io.(:cleanup_regions)) == :cleanup_failed
    assert Error.class(io.(:write)) == :platform_error
    assert Error.class(io.(nil)) == :platform_error
  end

  test "R8.2 corruption and exhaustion are loud, expected outcomes are not" do
    level = &Catalogue.fetch(&1).level
    for code <- [:corrupted, :truncated], do: assert(level.(code) == :error)
    for code <- [:resource_exhausted, :permission_denied], do: assert(level.(code) == :warning)
    for code <- [:empty, :timeout, :not_found, :stale], do: assert(level.(code) == :debug)
  end

  test "a code that nobody has described is still an error with a class and a level" do
    assert %{class: :platform_error, level: :warning} = Catalogue.fetch(:of_tomorrow)
  end

  test "R8.1 every error that is answered has its context and a remedy", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    before = DateTime.utc_now()

    for call <- [
          fn -> SharedMemory.read(id, place) end,
          fn -> SharedMemory.map_region("nobody", place) end,
          fn -> SharedMemory.allocate_region(5000, place) end,
          fn -> SharedMemory.allocate_region(4096, [slots: 0] ++ place) end,
          fn -> SharedMemory.write(:x, "x") end,
          fn -> SharedMemory.fetch(%{}) end,
          fn -> SharedMemory.unsubscribe(:x) end
        ] do
      assert {:error, %Error{} = error} = call.()
      assert error.platform == :linux
      assert error.process_id == self()
      assert DateTime.compare(error.timestamp, before) in [:gt, :eq]
      assert is_binary(error.message) and is_binary(error.remedy) and error.remedy != ""
      assert is_atom(error.operation) and error.operation != nil
      assert is_map(error.additional_info)
    end

    {:error, error} = SharedMemory.allocate_region(4096, slots: 0)

    assert %{option: "option :slots", expected: "an integer from 1 to 64", got: "0"} =
             error.additional_info
  end

  test "an id that is no text is a named error, for every function", %{place: place} do
    id = <<255, 254>>

    for call <- [
          fn -> SharedMemory.map_region(id, place) end,
          fn -> SharedMemory.unmap_region(id, place) end,
          fn -> SharedMemory.deallocate_region(id, place) end,
          fn -> SharedMemory.write(id, "x", place) end,
          fn -> SharedMemory.write(id, "x") end,
          fn -> SharedMemory.read(id, place) end,
          fn -> SharedMemory.read(id) end,
          fn -> SharedMemory.seal(id, place) end,
          fn -> SharedMemory.binary(id, place) end,
          fn -> SharedMemory.handle(id, place) end,
          fn -> SharedMemory.get_region_info(id, place) end,
          fn -> SharedMemory.subscribe(id, place) end
        ] do
      assert {:error, %Error{code: :invalid_argument, message: message}} = call.()
      assert message =~ "<<255, 254>>"
    end
  end

  test "one that is raised is the same" do
    error = assert_raise Error, fn -> SharedMemory.read!("nobody") end
    assert %{code: :not_found, process_id: pid, timestamp: %DateTime{}} = error
    assert pid == self()
  end
end
